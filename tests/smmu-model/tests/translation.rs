//! Streams, stage 2 and what is cached of them.

mod common;

use common::*;
use smmu_model::{Config, Why};

fn machines() -> [Config; 5] {
    let server = Config::server();
    [server.clone(), server.clone().linear(), server.clone().noncoherent(), server.instant(), Config::small()]
}

#[test]
fn a_stream_goes_where_its_tables_say() {
    for c in machines() {
        let mut b = Bench::up(c);
        assert_eq!(b.goes_to(5, 0x4000_0000), Err(if b.c.two_level { Why::BadStreamId } else { Why::BadSte }));
        b.mapped(5, 0x4000_3000, 0x12_3456_7000);
        b.attach(6, BYPASS);
        b.attach(7, ABORT);
        assert_eq!(b.goes_to(5, 0x4000_3abc), Ok(0x12_3456_7abc));
        assert_eq!(b.goes_to(5, 0x4000_4000), Err(Why::Translation));
        assert_eq!(b.goes_to(5, 0x80_0000_0000), Err(Why::Translation));
        assert_eq!(b.goes_to(6, 0x1234), Ok(0x1234));
        assert_eq!(b.goes_to(7, 0x1234), Err(Why::Configured));
        assert_eq!(b.goes_to(8, 0x1234), Err(Why::BadSte));
        b.m.assert_clean();
    }
}

//! The check on small trees of sources.

use std::collections::BTreeMap;

use super::judge;

/// Checks files given as name below `src/` and text; `lib.rs` declares what the test does not.
fn report(files: &[(&str, &str)]) -> String {
    let mut sources: BTreeMap<String, String> =
        files.iter().map(|(name, text)| (format!("src/{name}"), (*text).to_owned())).collect();
    sources.entry("src/lib.rs".into()).or_insert_with(|| {
        let rooms = files.iter().filter_map(|(name, _)| {
            let (first, rest) = name.split_once('/').unwrap_or((name, "mod.rs"));
            (rest == "mod.rs" && first != "main.rs").then(|| first.trim_end_matches(".rs"))
        });
        rooms.map(|room| format!("pub mod {room};\n")).collect()
    });
    judge(&sources).err().unwrap_or_default()
}

#[test]
fn imports_of_rooms_below_are_accepted() {
    let text = report(&[
        ("vgic/mod.rs", "use crate::gic::Gic; use core::fmt; fn f(_: crate::ids::Id) {}"),
        ("gic/mod.rs", "pub struct Gic;"),
        ("ids.rs", "pub struct Id;"),
    ]);
    assert_eq!(text, "");
}

#[test]
fn an_import_of_a_room_above_is_reported_with_its_line_and_names() {
    let text = report(&[
        ("gic/mod.rs", "use core::fmt;\nuse crate::vgic::{A, B};"),
        ("vgic/mod.rs", "pub struct A; pub struct B;"),
    ]);
    assert!(text.contains("src/gic/mod.rs:2: gic imports vgic, which is above it: src/vgic/mod.rs (A, B)"), "{text}");
}

#[test]
fn the_program_is_above_the_library_and_names_it_as_a_crate() {
    let main = "mod boot; fn main() { doorward::run::go() }";
    let text = report(&[
        ("main.rs", main),
        ("boot/mod.rs", "use doorward::ids::Id;"),
        ("run/mod.rs", "pub fn go() {}"),
        ("ids.rs", "pub struct Id;"),
    ]);
    assert!(text.is_empty(), "{text}");
    let text = report(&[
        ("lib.rs", "pub mod ids;"),
        ("main.rs", "mod boot; fn start() {}"),
        ("boot/mod.rs", "fn f() { crate::start() }"),
        ("ids.rs", ""),
    ]);
    assert!(text.is_empty(), "an import of the root alone is no circle: {text}");
}

#[test]
fn rooms_side_by_side_may_import_each_other_in_one_direction_only() {
    let one = ("mm/mod.rs", "use crate::platform::P; pub struct M; pub struct N;");
    let text = report(&[one, ("platform/mod.rs", "pub struct P;")]);
    assert_eq!(text, "");
    let text =
        report(&[one, ("platform/mod.rs", "pub struct P; pub mod other;"), ("platform/other.rs", "use crate::mm::M;")]);
    assert!(text.contains("mm and platform import each other"), "{text}");
    assert!(text.contains("0 circles"), "{text}");
}

#[test]
fn a_room_without_a_place_is_reported() {
    assert!(report(&[("attic/mod.rs", "")]).contains("src/attic has no place in the order of rooms"));
}

#[test]
fn two_files_of_a_room_that_import_each_other_are_a_circle() {
    let text = report(&[
        ("gic/mod.rs", "mod a; mod b;"),
        ("gic/a.rs", "use super::b::B;\npub struct A;"),
        ("gic/b.rs", "pub struct B;\nfn f(_: super::a::A) {}"),
    ]);
    assert!(text.contains("circle 1: 2 files in gic\n  src/gic/a.rs:1 -> src/gic/b.rs (B)\n"), "{text}");
    assert!(text.contains("  src/gic/b.rs:2 -> src/gic/a.rs (A)\n"), "{text}");
}

#[test]
fn a_declaration_of_a_module_is_no_import_and_a_use_of_the_parent_is() {
    let child = ("gic/a.rs", "use super::Gic; pub struct A;");
    assert_eq!(report(&[("gic/mod.rs", "mod a; pub struct Gic;"), child]), "");
    let text = report(&[("gic/mod.rs", "mod a; pub struct Gic(a::A);"), child]);
    assert!(text.contains("src/gic/mod.rs:1 -> src/gic/a.rs (A)"), "{text}");
    assert!(text.contains("src/gic/a.rs:1 -> src/gic/mod.rs (Gic)"), "{text}");
}

#[test]
fn a_re_export_is_followed_to_the_file_that_defines_the_name() {
    let text = report(&[
        ("gic/mod.rs", "mod a; mod b; pub use a::A as Alias; pub use b::*;"),
        ("gic/a.rs", "use super::B; pub struct A;"),
        ("gic/b.rs", "use crate::gic::Alias; pub struct B;"),
    ]);
    assert!(text.contains("circle 1: 2 files"), "{text}");
    assert!(text.contains("src/gic/a.rs:1 -> src/gic/b.rs (B)"), "{text}");
    assert!(text.contains("src/gic/b.rs:1 -> src/gic/a.rs (A)"), "{text}");
}

#[test]
fn a_module_that_re_exports_its_children_only_imports_what_it_uses_itself() {
    let child = ("gic/a.rs", "use super::G; pub struct A;");
    assert_eq!(report(&[("gic/mod.rs", "mod a; pub use a::A; pub struct G;"), child]), "");
    let text = report(&[("gic/mod.rs", "mod a; pub use a::A; pub struct G(A);"), child]);
    assert!(text.contains("src/gic/mod.rs:1 -> src/gic/a.rs (A)"), "{text}");
    let text = report(&[("gic/mod.rs", "pub use crate::vgic::V;"), ("vgic/mod.rs", "pub struct V;")]);
    assert!(text.contains("gic imports vgic"), "{text}");
}

#[test]
fn groups_renames_and_nested_trees_are_read() {
    let text = report(&[
        ("gic/mod.rs", "use crate::{vgic::{self, deep::{D as E, F}}, ids};\nfn f() { vgic::V; ids::I }"),
        ("vgic/mod.rs", "pub mod deep; pub struct V;"),
        ("vgic/deep.rs", "pub struct D; pub struct F;"),
        ("ids.rs", ""),
    ]);
    assert!(text.contains("src/gic/mod.rs:1: gic imports vgic, which is above it: src/vgic/deep.rs (D, F)"), "{text}");
    assert!(text.contains("src/gic/mod.rs:2: gic imports vgic, which is above it: src/vgic/mod.rs (V)"), "{text}");
}

#[test]
fn paths_in_bodies_types_patterns_and_macros_are_read() {
    for body in [
        "fn f() { crate::vgic::go() }",
        "fn f() -> crate::vgic::V {}",
        "fn f(x: u8) { match x { crate::vgic::C => {} _ => {} } }",
        "fn f() { log::info!(\"{}\", crate::vgic::go()) }",
        "fn f() { log::info!(\"{}\", [1 + crate::vgic::C]) }",
        "macro_rules! m { () => { $crate::vgic::go() } }",
        "fn f() { use crate::vgic; vgic::go() }",
        "fn f() { use crate::vgic::V; let v: V; }",
        "mod inner { fn f() { crate::vgic::go() } }",
        "mod inner { fn f() { super::super::vgic::go() } }",
        "use crate::vgic::V::*;",
        "use crate::vgic::*;",
        "impl crate::vgic::T for () {}",
        "fn f<A: crate::vgic::T>() {}",
        "fn f() { crate::vgic::made_by_a_macro() }",
    ] {
        let vgic = "pub fn go() {} pub enum V {} pub const C: u8 = 1; pub trait T {} make!(made_by_a_macro);";
        let text = report(&[("gic/mod.rs", body), ("vgic/mod.rs", vgic)]);
        assert!(text.contains("gic imports vgic"), "{body}: {text}");
    }
}

#[test]
fn code_for_tests_is_not_read() {
    for gic in [
        "#[cfg(test)] use crate::vgic::V;",
        "#[cfg(test)] mod tests { use crate::vgic::V; }",
        "#[cfg(test)] mod tests;",
        "#[cfg(all(test, not(loom)))] mod tests;",
        "#[cfg(any(test, all(test, loom)))] mod tests;",
        "struct G; impl G { #[cfg(test)] fn f() { crate::vgic::V } }",
        "struct G { #[cfg(test)] f: crate::vgic::V }",
        "#[test] fn f() { crate::vgic::V }",
        "fn f() { #[cfg(test)] crate::vgic::V(); }",
        "fn f() { #[cfg(test)] let v = crate::vgic::V; #[cfg(test)] { crate::vgic::V } }",
        "fn f() { #[cfg(test)] assert!(crate::vgic::V); }",
    ] {
        let text =
            report(&[("gic/mod.rs", gic), ("gic/tests.rs", "use crate::vgic::V;"), ("vgic/mod.rs", "pub struct V;")]);
        assert_eq!(text, "", "{gic}");
    }
    let gic = "#[cfg(not(test))] use crate::vgic::V;\n#[cfg(any(test, feature = \"bench\"))] use crate::vgic::W;";
    let text = report(&[("gic/mod.rs", gic), ("vgic/mod.rs", "pub struct V; pub struct W;")]);
    assert!(text.contains("(V, W)"), "{text}");
}

#[test]
fn comments_visibilities_and_attributes_are_no_imports() {
    let gic = "//! See [`crate::vgic::V`].\n/// [`crate::vgic::V`]\npub(in crate::gic) struct G; // crate::vgic::V";
    assert_eq!(report(&[("gic/mod.rs", gic), ("vgic/mod.rs", "pub struct V;")]), "");
}

#[test]
fn an_exported_macro_belongs_to_the_file_that_defines_it() {
    let console = "#[macro_export] macro_rules! fatal { () => {} }";
    for body in ["fn f() { crate::fatal!() }", "use crate::fatal;", "fn f() { fatal!() }"] {
        let text = report(&[("arch/mod.rs", body), ("console/mod.rs", console)]);
        assert!(text.contains("arch imports console, which is above it: src/console/mod.rs (fatal"), "{body}: {text}");
    }
}

#[test]
fn a_module_and_an_item_of_one_name_are_told_apart() {
    let text = report(&[
        ("gic/mod.rs", "mod gic; mod other; pub use gic::Gic; pub use gic::gic;"),
        ("gic/gic.rs", "pub struct Gic; pub fn gic() {}"),
        ("gic/other.rs", "use super::gic::Gic; use crate::gic::gic;"),
    ]);
    assert_eq!(text, "");
}

#[test]
fn a_file_that_does_not_parse_is_reported() {
    assert!(report(&[("ids.rs", "\nfn {")]).starts_with("src/ids.rs:2: "));
}

//! PCI functions and dom0's drivers of them.
//!
//! A function's driver is unbound before the function goes to a domain, but not before the hypervisor has said that it can be
//! given to one: the function may be the disk that dom0 runs from. No driver is bound while it is away: the name in
//! `driver_override` is that of none (Documentation/ABI/testing/sysfs-bus-pci of Linux).

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use doorward_api::{Assign, Kind, PciPage, Request, Sbdf};

use crate::Session;
use crate::client::{Client, read};
use crate::fail::{Class, Failure, Outcome};
use crate::text::shown;

/// No driver has this name.
const NOBODY: &str = "doorward-domain";

pub fn assign(session: &mut Session, domain: &str, function: Sbdf, allow_no_reset: bool) -> Outcome {
    let mut client = session.connect()?;
    let domain = client.domain(domain)?.facts.id;
    let mut unbound = Vec::new();
    let given = unbind_all(session, &mut client, &[function], &mut unbound)
        .and_then(|()| client.run(&Request::PciAssign(Assign { domain, function, allow_no_reset })));
    if given.is_err() {
        unbound.into_iter().for_each(|function| rebind(session, function));
    }
    given
}

pub fn release(session: &mut Session, function: Sbdf) -> Outcome {
    session.connect()?.run(&Request::PciRelease(function))?;
    rebind(session, function);
    Ok(())
}

fn device(session: &Session, function: Sbdf) -> PathBuf {
    session.sysfs.join("bus/pci/devices").join(function.to_string())
}

/// Asks the hypervisor whether all of `functions` can be given to a domain.
fn check(client: &mut Client, functions: &[Sbdf]) -> Outcome {
    let mut known = Vec::new();
    client.pages(Request::PciList, &mut |body| {
        let page = read::<PciPage>(body, Kind::PciList)?;
        known.extend(page.functions.iter().map(|function| {
            let why = if function.assignable { None } else { Some(shown(function.why)) };
            (function.sbdf, why)
        }));
        Ok(page.next)
    })?;
    functions.iter().try_for_each(|function| match known.iter().find(|(sbdf, _)| sbdf == function) {
        Some((_, None)) => Ok(()),
        Some((_, Some(why))) => {
            Err(Failure::new(Class::Refused, format_args!("{function}: it cannot be given to a domain: {why}")))
        }
        None => Err(Failure::new(Class::Refused, format_args!("{function}: there is no such PCI function"))
            .hint("`dw pci list` shows them")),
    })
}

/// Unbinds dom0's drivers of functions that can be given to a domain. `unbound` are the functions that had one, also if a
/// later one fails.
pub fn unbind_all(session: &Session, client: &mut Client, functions: &[Sbdf], unbound: &mut Vec<Sbdf>) -> Outcome {
    if functions.is_empty() {
        return Ok(());
    }
    check(client, functions)?;
    functions.iter().try_for_each(|&function| {
        let device = device(session, function);
        // dom0 does not see a function that another domain has, or that is hidden; the hypervisor knows more.
        if !device.exists() {
            return Ok(());
        }
        let failed = |what: &str, error: std::io::Error| {
            Failure::system(format_args!("{function}: {what}: {error}")).hint("run dw as root")
        };
        let driver = fs::read_link(device.join("driver")).ok();
        let driver = driver.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
        fs::write(device.join("driver_override"), NOBODY).map_err(|error| failed("keeping drivers away", error))?;
        unbound.push(function);
        let Some(driver) = driver else { return Ok(()) };
        eprintln!("{function}: taking it from dom0's driver {driver}");
        match fs::write(device.join("driver/unbind"), function.to_string()) {
            // It has been unbound meanwhile.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound) => Ok(()),
            other => other.map_err(|error| failed(&format!("unbinding dom0's driver {driver}"), error)),
        }
    })
}

/// Lets dom0's driver have a function again. What fails is said, and is no failure of what was asked.
pub fn rebind(session: &Session, function: Sbdf) {
    let device = device(session, function);
    if !device.exists() {
        return;
    }
    let probe = session.sysfs.join("bus/pci/drivers_probe");
    let done = fs::write(device.join("driver_override"), "\n").and_then(|()| fs::write(probe, function.to_string()));
    if let Err(error) = done {
        eprintln!("dw: {function}: no driver of dom0 took it: {error}");
    }
}

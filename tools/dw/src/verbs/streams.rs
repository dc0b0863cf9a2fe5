//! What goes on: the log and events.

use std::time::{Duration, Instant};

use doorward_api::{ALL, EVENT, EVENTS_PORT, Event, FRAME_MAX, Kind, LogChunk, Parser, Request};
use serde_json::{Value, json};

use crate::Session;
use crate::client::{Client, read};
use crate::fail::{Class, Failure, Outcome};
use crate::port::Came;
use crate::text::{shown, stamp};

/// How often `log -f` looks for more.
const LOOK: Duration = Duration::from_millis(500);

/// Prints lines of the log. Bytes that have come without the end of their line wait for it.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, session: &mut Session, bytes: &[u8]) -> Outcome {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|&byte| byte == b'\n') else { return Ok(()) };
        let rest = self.0.split_off(end + 1);
        let lines = std::mem::replace(&mut self.0, rest);
        print_lines(session, &lines)
    }

    fn rest(&mut self, session: &mut Session) -> Outcome {
        let lines = std::mem::take(&mut self.0);
        if lines.is_empty() { Ok(()) } else { print_lines(session, &lines) }
    }
}

fn print_lines(session: &mut Session, bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(|line| shown(line.trim_end_matches('\r')));
    let out: String = match session.json {
        true => lines.map(|line| format!("{}\n", json!({ "line": line }))).collect(),
        false => lines.map(|line| line + "\n").collect(),
    };
    session.print(&out)
}

pub fn log(session: &mut Session, follow: bool) -> Outcome {
    let (mut position, mut lines) = (0, Lines::default());
    loop {
        let mut client = session.connect()?;
        position = log_from(session, &mut client, position, &mut lines)?;
        drop(client);
        if !follow {
            return lines.rest(session);
        }
        std::thread::sleep(LOOK);
    }
}

/// Prints all that is there from a position on, and returns the position behind it.
fn log_from(session: &mut Session, client: &mut Client, mut position: u64, lines: &mut Lines) -> Outcome<u64> {
    loop {
        let body = client.get(&Request::Log(position))?;
        let chunk = read::<LogChunk>(&body, Kind::Log)?;
        if position != 0 && chunk.first > position {
            lines.rest(session)?;
            eprintln!("dw: {} bytes of the log were overwritten before they were read", chunk.first - position);
        }
        lines.take(session, chunk.bytes)?;
        // A position that does not grow is the end, whatever else the answer says.
        if chunk.next <= position.max(chunk.first) {
            return Ok(position.max(chunk.first));
        }
        position = chunk.next;
    }
}

fn event_json(event: &Event<'_>) -> Value {
    json!({
        "sequence": event.sequence,
        "time_us": event.time_us,
        "event": event.kind.label(),
        "domain": if event.domain == ALL { Value::Null } else { event.name.into() },
        "id": if event.domain == ALL { Value::Null } else { event.domain.into() },
        "text": shown(event.text),
    })
}

pub fn events(session: &mut Session, count: Option<u32>) -> Outcome {
    let mut port = session.ports.open(EVENTS_PORT, Instant::now() + session.patience, false)?;
    let mut parser = Parser::new(vec![0; FRAME_MAX]);
    let (mut last, mut seen) = (None, 0);
    while count.is_none_or(|count| seen < count) {
        // There is no deadline for what may never happen.
        let count = match port.read(parser.space(), Instant::now() + Duration::from_secs(3600))? {
            Came::Bytes(count) => count,
            Came::Nothing => continue,
            Came::Closed => {
                return Err(Failure::new(Class::NoAnswer, "the hypervisor closed the port for events"));
            }
        };
        let Some(frame) = parser.advance(count) else { continue };
        let Ok(event) = Event::decode(&frame) else {
            // A later version may have kinds that are not known here.
            if frame.header.kind == EVENT {
                eprintln!("dw: an event of a kind that this dw does not know");
            }
            continue;
        };
        if let Some(lost) = last.and_then(|last: u64| event.sequence.checked_sub(last)).filter(|&step| step > 1) {
            eprintln!("dw: {} events were lost", lost - 1);
        }
        last = Some(event.sequence);
        seen += 1;
        if session.json {
            session.print_json(&event_json(&event))?;
        } else {
            let name = if event.domain == ALL {
                "machine".to_owned()
            } else {
                format!("{} ({})", shown(event.name), event.domain)
            };
            let text = if event.text.is_empty() { String::new() } else { format!(": {}", shown(event.text)) };
            session.print(&format!("[{:>13}] {name}: {}{text}\n", stamp(event.time_us), event.kind.label()))?;
        }
    }
    Ok(())
}

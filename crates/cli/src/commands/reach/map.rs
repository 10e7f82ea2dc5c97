//! `klpfarm reach map`.

use klpfarm_engine::reach::{Measurement, default_method, measure};
use klpfarm_engine::{catalog, host, image};
use klpfarm_farm::Method;
use klpfarm_image::Image;
use klpfarm_model::Accel;
use klpfarm_reach::{BACKGROUND, Outcome, Record};
use serde_json::json;

use super::{MapArgs, MethodArg};
use crate::console::Console;
use crate::failure::{Failure, print, print_json};
use crate::interrupt;

pub(super) async fn run(args: MapArgs) -> Result<u8, Failure> {
    let workloads = match args.workloads.as_slice() {
        [] => catalog::shipped_workloads()?,
        names => catalog::named_workloads(names)?,
    };
    let image = image::find(&args.image)?;
    let (accel, because) = host::accel(args.accel).await?;
    let method = match args.method {
        None => default_method(accel),
        Some(MethodArg::Tracer) => Method::Tracer,
        Some(MethodArg::Plugin) if accel == Accel::Tcg => Method::Plugin,
        Some(MethodArg::Plugin) => {
            return Err(Failure::input(
                "--method plugin needs emulation: give `--accel tcg`, or `--method tracer`",
            ));
        }
    };
    tell!("klpfarm: accelerator: {because}; calls are counted by: {}", method.as_str());
    let what = Measurement { image, workloads, window: args.window, method, accel, again: args.again };
    let seen = |record: &Record| tell!("klpfarm: {}", line(record));
    let records = measure(&what, &interrupt::listen(), &mut Console::default(), seen).await?;
    show(&what.image, &records, args.json);
    Ok(0)
}

fn called(record: &Record) -> usize {
    record.functions.values().filter(|(_, calls)| calls.window + calls.setup > 0).count()
}

fn line(record: &Record) -> String {
    match &record.outcome {
        Outcome::Measured { window_ms, cpus, memory_mib, .. } => format!(
            "{}: {} functions called in {:.0} s, {cpus:.1} CPUs, {memory_mib} MiB",
            record.workload,
            called(record),
            *window_ms as f64 / 1000.0,
        ),
        Outcome::Unavailable(why) => {
            format!("{}: unavailable: {}", record.workload, klpfarm_report::one_line(why, 300))
        }
    }
}

fn show(image: &Image, records: &[Record], as_json: bool) {
    if !as_json {
        let mut text = format!("{:<28}{}\n", "image", image.id());
        for record in records {
            text.push_str(&line(record));
            text.push('\n');
        }
        print(&text);
        return;
    }
    let one = |r: &Record| json!({ "workload": r.workload, "method": r.method, "outcome": r.outcome, "called": called(r) });
    let (background, workloads): (Vec<_>, Vec<_>) = records.iter().partition(|r| r.workload == BACKGROUND);
    print_json(&json!({
        "image": image.id(),
        "background": background.into_iter().map(one).next(),
        "workloads": workloads.into_iter().map(one).collect::<Vec<_>>(),
    }));
}

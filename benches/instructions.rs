//! Instructions that the layer adds to a request over the bare service, in memory and without a network.
//!
//! ```text
//! cargo bench --bench instructions
//! ```
//!
//! The last column has a recorder for the metrics of the feature `metrics`, which is enabled.
//!
//! They are counted by valgrind (callgrind), which must be installed, and do not depend on other load. Each case
//! runs twice in its own process, and the shorter run is subtracted, so that the startup does not count.

mod cases;

use std::{env, process::Command};

use cases::{CASES, Case, run};
use metrics_exporter_prometheus::PrometheusBuilder;

const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

fn main() {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.as_slice() {
        [case, variant, times] => {
            if variant == "recorded" {
                PrometheusBuilder::new().install_recorder().unwrap();
            }
            let (_, case) = CASES.into_iter().find(|(_, known)| format!("{known:?}") == *case).unwrap();
            run(case, variant == "bare", times.parse().unwrap());
        }
        _ => report(),
    }
}

fn report() {
    println!("{:<32}{:>14}{:>14}", "added to the bare service", "instructions", "recorded");
    for (name, case) in CASES {
        let bare = instructions(case, "bare");
        let [keep, recorded] = ["keep", "recorded"].map(|variant| {
            let instructions = instructions(case, variant).zip(bare);
            instructions.map_or("no valgrind".into(), |(with, bare)| (with - bare).to_string())
        });
        println!("{name:<32}{keep:>14}{recorded:>14}");
    }
}

/// Instructions per request.
fn instructions(case: Case, variant: &str) -> Option<i64> {
    let count = |times: u64| -> Option<i64> {
        let run = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(env::current_exe().ok()?)
            .args([&format!("{case:?}"), variant, &times.to_string()])
            .output()
            .ok()?;
        let text = String::from_utf8(run.stderr).ok()?;
        text.split("Collected :").nth(1)?.split_whitespace().next()?.parse().ok()
    };
    Some((count(MANY)? - count(FEW)?) / (MANY - FEW) as i64)
}

//! Allocations that the layer adds to a request over the bare service, in memory and without a network.
//!
//! ```text
//! cargo bench --bench allocations
//! ```

mod cases;

use cases::{CASES, Case, run};

const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

fn main() {
    println!("{:<32}{:>14}", "added to the bare service", "allocations");
    for (name, case) in CASES {
        println!("{name:<32}{:>14}", allocations(case, false) - allocations(case, true));
    }
}

/// Allocations per request.
fn allocations(case: Case, bare: bool) -> i64 {
    let measured = |times| allocation_counter::measure(|| run(case, bare, times)).count_total as i64;
    (measured(MANY) - measured(FEW)) / (MANY - FEW) as i64
}

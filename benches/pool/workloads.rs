//! What the pool creates and holds on streams of allocations: counted, not timed.

use dilated_attention::pool::{Balanced, Exact, Lean, NoPooling, PoolOptions, Speed, size_class};
use testing::traces::{Simulated, Workload};

use crate::table::Table;

struct Figures {
    acquires: f64,
    creates: f64,
    held_per_live: f64,
}

impl Figures {
    fn of(simulated: &Simulated) -> Self {
        let stats = simulated.pool.stats();
        let acquires = (stats.acquires - simulated.warm.acquires) as f64;
        let creates = (stats.creates - simulated.warm.creates) as f64;
        Self {
            acquires,
            creates,
            held_per_live: stats.held_bytes.peak as f64 / stats.requested_bytes.peak as f64,
        }
    }

    fn created_share(&self) -> f64 {
        self.creates / self.acquires
    }
}

pub fn measure(table: &mut Table) {
    let policies = || {
        [
            (
                "Balanced",
                PoolOptions::default().with_policy(Balanced::default()),
            ),
            ("Speed", PoolOptions::default().with_policy(Speed)),
            ("Lean", PoolOptions::default().with_policy(Lean)),
            ("Exact", PoolOptions::default().with_policy(Exact)),
            ("NoPooling", PoolOptions::default().with_policy(NoPooling)),
        ]
    };
    println!("\ncreates after warm-up (share of the leases), and peak held / peak asked for");
    print!("{:>6}", "");
    for (name, _) in policies() {
        print!(" {name:>24}");
    }
    println!();
    for (letter, workload) in Workload::ALL {
        print!("{letter:>6}");
        for (name, options) in policies() {
            let mut simulated = Simulated::new(options);
            workload.run(&mut simulated);
            let figures = Figures::of(&simulated);
            let creates = format!(
                "{} ({:.2} %)  {:.2}",
                figures.creates,
                100.0 * figures.created_share(),
                figures.held_per_live
            );
            print!(" {creates:>24}");
            if name == "Balanced" {
                goals(letter, &figures, table);
            }
        }
        println!();
    }
    waste(table);
}

fn goals(letter: &str, figures: &Figures, table: &mut Table) {
    let (_, held) = [
        ("A100", 1.50),
        ("A1000", 1.32),
        ("A4000", 1.22),
        ("B", 1.26),
        ("C", 1.35),
        ("D", 1.50),
    ]
    .into_iter()
    .find(|(name, _)| *name == letter)
    .expect("a goal for each workload");
    let goal = format!("peak held / peak asked for, {letter}");
    table.at_most(goal, figures.held_per_live, held);
    match letter {
        "B" => table.at_most(
            "created, % of leases, B",
            100.0 * figures.created_share(),
            0.9,
        ),
        "C" => table.at_most(
            "created after warm-up of 39 800 leases, C",
            figures.creates,
            5.0,
        ),
        "D" => table.at_least(
            "hits, % of leases, D",
            100.0 * (1.0 - figures.created_share()),
            97.0,
        ),
        _ => {}
    }
}

/// Bytes of a class that nobody asked for, over all sizes of several doublings.
fn waste(table: &mut Table) {
    let (mut worst, mut sum, mut count) = (0.0f64, 0.0, 0.0);
    for bytes in 4096..65_536u64 {
        let class = size_class::class_bytes(bytes, u64::MAX);
        let waste = (class - bytes) as f64 / class as f64;
        worst = worst.max(waste);
        sum += waste;
        count += 1.0;
    }
    table.at_most("waste of a class, worst, %", 100.0 * worst, 12.5);
    table.at_most("waste of a class, mean, %", 100.0 * sum / count, 6.5);
}

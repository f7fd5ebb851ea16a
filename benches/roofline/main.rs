//! Everything that the library computes against the adapter's own ceilings, in one run: `cargo bench --bench roofline`, with
//! options behind `--` (`-- --help`).
//!
//! First come the ceilings: multiply-adds in f32 and f16, products of matrix units, a copy. Then, a row each: wall time, time
//! on the device where it has timestamps, work per second and its share of the ceiling, which is measured before each
//! repetition, so that a machine whose speed drifts does not shift the ratio; dispatches; the most bytes that existed, and
//! how many above inputs and outputs; the largest error over what is allowed. Medians with the smallest and largest. Rows
//! share their device, inputs are random, outputs are overwritten before each repetition and checked after the last
//! (see `timing.rs`). The backward counts 2.5 times the operations of the forward; layer norms count each matrix once.
//!
//! Attention and products are measured in half precision, too, on a software adapter a few of them. Kernels with cooperative
//! matrices are compared with the ceiling of theirs; where an adapter has another tier than the one it chooses for f16 there
//! are rows of that as well (on a software adapter of the quick cases, for its matrices are slow). Errors in half precision are
//! shares of twice those of a plain implementation that stores the same type.

mod attention;
mod ceilings;
mod encoder;
mod growth;
mod join;
mod layers;
mod machine;
mod matrices;
mod options;
mod report;
mod start;
mod timing;

use std::error::Error;
use std::rc::Rc;

use attention::{Direction, Prepared};
use ceilings::Ceiling;
use clap::Parser;
use dilated_attention::device::KernelTier;
use dilated_attention::{Context, DType, Result as LibraryResult, wgpu};
use encoder::EncoderLayer;
use layers::{Norm, Product};
use machine::Machine;
use options::Options;
use report::{Key, Report};
use serde_json::{Value, json};
use testing::cases::{Case, ProductCase};
use timing::{Clock, Subject, Timed, measure};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if !options.join.is_empty() {
        return join::print(&options.join);
    }
    if options.first_call {
        return start::child();
    }
    let machine = pollster::block_on(Machine::open())?;
    if options.processor_time {
        if !machine.is_software() {
            return Err("--processor-time is for software adapters: others run elsewhere".into());
        }
        testing::processor::seconds()?;
    }
    let clock = Rc::new(Clock::new(&machine.context, options.processor_time));
    let report = Report::new(&machine, options.json.as_deref())?;
    let tier = machine.other_tier()?;
    let mut run = Run {
        matrices: matrices::ceilings(&machine, &clock),
        tier,
        fma: Rc::new(ceilings::fma(&machine, &clock, "f32")),
        copy: Rc::new(ceilings::copy(&machine, &clock)),
        machine,
        clock,
        report,
        options,
        all_right: true,
    };
    run.ceilings()?;
    run.attention()?;
    run.products()?;
    run.norms()?;
    run.encoder_layers()?;
    if run.options.wants("growth") {
        let Run {
            machine,
            clock,
            report,
            options,
            ..
        } = &mut run;
        run.all_right &= growth::run(machine, clock, report, options.quick)?;
    }
    if run.options.wants("start") {
        start::run(&mut run.report, run.options.quick)?;
    }
    println!("\npool\n{}", run.machine.context.pool().stats());
    match run.all_right {
        true => Ok(()),
        false => Err("some results are wrong, see above".into()),
    }
}

/// What tensors are stored as, and the tier asked for beside the one that is chosen.
type Stored = (DType, Option<KernelTier>);

const PLAIN: Stored = (DType::F32, None);

struct Run {
    machine: Machine,
    clock: Rc<Clock>,
    fma: Rc<Ceiling>,
    copy: Rc<Ceiling>,
    matrices: Vec<(String, Result<Rc<Ceiling>, &'static str>)>,
    /// Beside the one that is chosen, for f16.
    tier: Option<(KernelTier, Context)>,
    report: Report,
    options: Options,
    all_right: bool,
}

impl Run {
    fn ceilings(&mut self) -> Result<(), Box<dyn Error>> {
        let Self { machine, clock, .. } = self;
        let half = machine
            .has(wgpu::Features::SHADER_F16)
            .then(|| ceilings::fma(machine, clock, "f16"));
        let repetitions = self.options.repetitions();
        let (fma, copy) = (self.fma.as_ref(), self.copy.as_ref());
        for ceiling in [fma].into_iter().chain(&half).chain([copy]) {
            let rates = ceiling.rates(repetitions);
            self.report.ceiling(&ceiling.name, ceiling.unit, rates)?;
        }
        if half.is_none() {
            self.report.no_ceiling("fma f16", "no SHADER_F16")?;
        }
        if self.matrices.is_empty() {
            let reason = "the adapter lists none";
            self.report.no_ceiling("cooperative matrix", reason)?;
        }
        for (name, ceiling) in &self.matrices {
            match ceiling {
                Ok(ceiling) => {
                    let rates = ceiling.rates(repetitions);
                    self.report.ceiling(name, ceiling.unit, rates)?;
                }
                Err(reason) => self.report.no_ceiling(name, reason)?,
            }
        }
        Ok(())
    }

    /// Rows of one case: with shaders that check and with those that do not. A case that fails is a row, too.
    fn rows<T: Timed>(
        &mut self,
        (group, case, kernel): (&str, &str, impl Fn(&T) -> &'static str),
        (dtype, tier): Stored,
        ceiling: &Ceiling,
        parameters: &Value,
        prepare: impl Fn(&Context) -> LibraryResult<T>,
    ) -> Result<(), Box<dyn Error>> {
        let [checked, unchecked] = self.machine.contexts();
        let contexts = match (tier, &self.tier) {
            (Some(_), Some((_, context))) => vec![(context, true)],
            _ if dtype == DType::F32 && self.options.compares_unchecked(group) => {
                vec![checked, unchecked]
            }
            _ => vec![checked],
        };
        let rows = || {
            let mut prepared = Vec::new();
            for (context, checked) in contexts {
                prepared.push((prepare(context)?, context, checked));
            }
            let subjects = prepared.iter().map(|(timed, context, _)| Subject {
                context,
                clock: &self.clock,
                timed,
            });
            let measured = measure(subjects.collect(), ceiling, self.options.repetitions())?;
            let named = |((timed, _, checked), measured): ((T, _, _), _)| {
                (kernel(&timed), checked, measured)
            };
            Ok(prepared.into_iter().zip(measured).map(named).collect())
        };
        let rows: LibraryResult<Vec<_>> = rows();
        match rows {
            Ok(rows) => {
                for (kernel, checked, measured) in rows {
                    let key = Key {
                        group,
                        case,
                        kernel,
                        dtype,
                        tier,
                        checked,
                    };
                    let right = self.report.row(&key, ceiling, parameters, &measured)?;
                    self.all_right &= right;
                }
            }
            Err(error) => {
                self.report
                    .failure(group, case, dtype, parameters, &error)?;
                self.all_right = false;
            }
        }
        Ok(())
    }

    /// Which of the cases.
    fn set(&self) -> &'static str {
        match (self.options.quick, self.machine.is_software()) {
            (true, _) => "quick",
            (false, true) => "software",
            (false, false) => "gpu",
        }
    }

    /// What tensors are stored as, with the tier asked for beside the one that is chosen.
    fn stored(&self) -> Vec<Stored> {
        let dtypes = self.options.dtypes();
        let mut stored: Vec<Stored> = dtypes.iter().map(|dtype| (*dtype, None)).collect();
        if let Some((tier, _)) = &self.tier
            && dtypes.contains(&DType::F16)
        {
            stored.push((DType::F16, Some(*tier)));
        }
        stored
    }

    /// Whether a case, which is in sets as `is_in` says, is measured as `stored`.
    fn measures(&self, stored: Stored, is_in: impl Fn(&str) -> bool) -> bool {
        match stored {
            _ if !self.machine.is_software() => true,
            (DType::F32, _) => true,
            (_, Some(_)) => is_in("half") && is_in("quick"),
            (_, None) => is_in("half"),
        }
    }

    /// What bounds kernels of a tier.
    fn ceiling(&self, (dtype, tier): Stored) -> Rc<Ceiling> {
        let chosen = match (self.machine.context.cooperative_tier(), tier) {
            (Ok(own), Some(tier)) => tier.is_cooperative().then_some(own),
            (Ok(own), None) if !self.machine.is_software() => Some(own),
            _ => None,
        };
        let of_matrix = chosen.filter(|_| dtype == DType::F16).and_then(|tier| {
            let size = if tier == KernelTier::Coop8 { 8 } else { 16 };
            let name = matrices::name([size; 3], "F16", "F32");
            let found = self.matrices.iter().find(|(own, _)| *own == name)?;
            found.1.clone().ok()
        });
        of_matrix.unwrap_or_else(|| self.fma.clone())
    }

    fn attention(&mut self) -> Result<(), Box<dyn Error>> {
        for (group, direction) in [
            ("forward", Direction::Forward),
            ("backward", Direction::Backward),
        ] {
            if !self.options.wants(group) {
                continue;
            }
            self.report.header(group, "GFLOP/s");
            for case in Case::set(self.set()) {
                for stored in self.stored() {
                    if !self.measures(stored, |set| case.is_in(set)) {
                        continue;
                    }
                    let kernel = self.options.kernel.filter(|_| stored.1.is_none());
                    let prepare = |context: &Context| {
                        Prepared::new(context, &case, kernel, direction, stored.0)
                    };
                    let names = (group, case.name.as_str(), Prepared::kernel);
                    let ceiling = self.ceiling(stored);
                    self.rows(names, stored, &ceiling, &json!(case), prepare)?;
                }
            }
        }
        Ok(())
    }

    fn products(&mut self) -> Result<(), Box<dyn Error>> {
        if !self.options.wants("matmul") {
            return Ok(());
        }
        self.report.header("matmul", "GFLOP/s");
        for case in ProductCase::set(self.set()) {
            for stored in self.stored() {
                if !self.measures(stored, |set| case.is_in(set)) {
                    continue;
                }
                let prepare = |context: &Context| Product::new(context, &case, stored.0);
                let names = ("matmul", case.name.as_str(), Product::kernel);
                let ceiling = self.ceiling(stored);
                self.rows(names, stored, &ceiling, &json!(case), prepare)?;
            }
        }
        Ok(())
    }

    fn norms(&mut self) -> Result<(), Box<dyn Error>> {
        if !self.options.wants("norm") {
            return Ok(());
        }
        self.report.header("norm", "GB/s");
        for (kernel, backward) in [("layer_norm", false), ("layer_norm_backward", true)] {
            let case = format!("{kernel}, {} rows of {}", layers::ROWS, layers::WIDTH);
            let prepare = |context: &Context| Norm::new(context, backward);
            let names = ("norm", case.as_str(), |_: &Norm| kernel);
            let parameters = json!({"rows": layers::ROWS, "width": layers::WIDTH});
            self.rows(names, PLAIN, &self.copy.clone(), &parameters, prepare)?;
        }
        Ok(())
    }

    fn encoder_layers(&mut self) -> Result<(), Box<dyn Error>> {
        if !self.options.wants("layer") {
            return Ok(());
        }
        self.report.header("layer", "GFLOP/s");
        let lengths: &[usize] = match (self.options.quick, self.machine.is_software()) {
            (true, _) => &[256],
            (false, true) => &[1024, 2048],
            (false, false) => &[1000, 5000, 20_000],
        };
        for &tokens in lengths {
            let case = format!("encoder layer, {tokens} tokens");
            let prepare = |context: &Context| EncoderLayer::new(context, tokens);
            let names = ("layer", case.as_str(), |_: &EncoderLayer| "all");
            let parameters = encoder::parameters(tokens);
            self.rows(names, PLAIN, &self.fma.clone(), &parameters, prepare)?;
        }
        Ok(())
    }
}

//! Starts workers below the layer, hands them cases, and adds up what becomes of them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use super::workloads::ALL;
use super::{ERRORS, Fault, HANG, KINDS};

/// Calls of a kind that a bounded run fails, in one workload with one error.
const BOUNDED: u64 = 2;

/// Workers at one time.
const WORKERS: usize = 2;

type Case = (usize, Fault);

/// What the arguments ask for.
#[derive(Debug, Default)]
struct Selection {
    most: Option<u64>,
    workload: Option<String>,
    kind: Option<String>,
    verbose: bool,
}

impl Selection {
    fn parse(arguments: &[String]) -> Option<Self> {
        let mut selection = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bounded" => selection.most = Some(BOUNDED),
                "--workload" => selection.workload = Some(arguments.next()?.clone()),
                "--kind" => selection.kind = Some(arguments.next()?.clone()),
                "--verbose" => selection.verbose = true,
                _ => return None,
            }
        }
        let workloads = ALL.map(|(name, _)| name);
        let known = |name: &Option<String>, names: &[&str]| {
            name.as_ref().is_none_or(|name| names.contains(&&**name))
        };
        let valid = known(&selection.workload, &workloads) && known(&selection.kind, &KINDS);
        valid.then_some(selection)
    }

    fn workloads(&self) -> Vec<usize> {
        let wanted = |index: &usize| {
            self.workload
                .as_ref()
                .is_none_or(|name| ALL[*index].0 == name)
        };
        (0..ALL.len()).filter(wanted).collect()
    }

    fn has_kind(&self, kind: usize) -> bool {
        self.kind.as_ref().is_none_or(|name| KINDS[kind] == name)
    }
}

/// What became of the cases of one kind and error.
#[derive(Default)]
struct Line {
    cases: u64,
    failed: u64,
    success: u64,
    errors: BTreeMap<String, u64>,
    caught: u64,
    panics: u64,
    hangs: u64,
    leaks: u64,
    wrong: u64,
    longest_milliseconds: u64,
}

pub fn run(arguments: &[String]) -> ExitCode {
    let Some(selection) = Selection::parse(arguments) else {
        eprintln!("usage: faults [--bounded] [--verbose] [--workload NAME] [--kind NAME]");
        for (name, _) in ALL {
            eprintln!("  workload {name}");
        }
        for name in KINDS {
            eprintln!("  kind {name}");
        }
        return ExitCode::from(2);
    };
    let folder = std::env::temp_dir().join(format!("faults-{}", std::process::id()));
    let outcome = sweep(&selection, &folder);
    let _ = std::fs::remove_dir_all(&folder);
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Cases that one process runs. wgpu keeps a lost device, with its driver's threads, as long as the process lives (docs/faults.md):
/// after some 600 of them there is no memory left.
const CASES_OF_A_WORKER: u32 = 50;

/// Runs all cases. Whether none failed.
fn sweep(selection: &Selection, folder: &Path) -> std::io::Result<bool> {
    std::fs::create_dir_all(folder)?;
    build_layer(folder)?;
    let begin = Instant::now();
    // The first run of each fills the driver's cache of kernels, the second counts.
    let mut worker = Worker::start(folder, 0)?;
    let mut cases = VecDeque::new();
    let mut patience = vec![6 * HANG; ALL.len()];
    for workload in selection.workloads() {
        let name = ALL[workload].0;
        let mut answer = Answer::default();
        for _ in 0..2 {
            answer = worker.ask((workload, Fault::default()), patience[workload])?;
            if answer.result != "success" {
                let text = format!("{name} without a fault: {} {}", answer.result, answer.text);
                return Err(std::io::Error::other(text));
            }
        }
        patience[workload] = HANG.max(Duration::from_millis(10 * answer.milliseconds));
        println!(
            "{name}: {} calls, {} ms",
            answer.calls.iter().sum::<u64>(),
            answer.milliseconds
        );
        for (kind, calls) in answer.calls.iter().enumerate() {
            if selection.has_kind(kind) {
                cases.extend(faults(kind, *calls, selection.most).map(|fault| (workload, fault)));
            }
        }
    }
    drop(worker);
    println!("{} cases", cases.len());
    let cases = Mutex::new(cases);
    let lines = Mutex::new(BTreeMap::<(usize, usize), Line>::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                scope.spawn({
                    let (cases, lines, patience) = (&cases, &lines, &patience);
                    move || work(folder, number, cases, lines, patience, selection.verbose)
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("the supervisor does not panic"))
    })?;
    let lines = lines.into_inner().expect("the supervisor does not panic");
    let good = print_table(&lines);
    println!("{:.0} s", begin.elapsed().as_secs_f64());
    Ok(good)
}

/// Every n from 1 to `calls`, or `most` of them spread evenly, with every error.
fn faults(kind: usize, calls: u64, most: Option<u64>) -> impl Iterator<Item = Fault> {
    let count = most.unwrap_or(calls).min(calls);
    let nth = move |index: u64| match count {
        1 => calls.div_ceil(2),
        _ => 1 + index * (calls - 1) / (count - 1),
    };
    (0..count).flat_map(move |index| {
        (0..ERRORS.len()).flat_map(move |error| {
            // Memory that has run out may stay so; what is lost stays lost anyway.
            let modes: &[bool] = if error == 0 { &[false] } else { &[false, true] };
            modes.iter().map(move |&onward| Fault {
                kind,
                error,
                nth: nth(index),
                onward,
            })
        })
    })
}

fn work(
    folder: &Path,
    number: usize,
    cases: &Mutex<VecDeque<Case>>,
    lines: &Mutex<BTreeMap<(usize, usize), Line>>,
    patience: &[Duration],
    verbose: bool,
) -> std::io::Result<()> {
    let mut worker = Worker::start(folder, number)?;
    for count in 1.. {
        let next = cases.lock().expect("no panic holds it").pop_front();
        let Some((workload, fault)) = next else {
            break;
        };
        if count % CASES_OF_A_WORKER == 0 {
            worker = Worker::start(folder, number)?;
        }
        worker.learn(workload, patience[workload])?;
        let mut answer = worker.ask((workload, fault), patience[workload])?;
        if matches!(&*answer.result, "hang" | "died" | "panic" | "broken") {
            worker = Worker::start(folder, number)?;
            if answer.result == "died" {
                answer.result = "panic".to_owned();
            }
        }
        let mut lines = lines.lock().expect("no panic holds it");
        let line = lines.entry((fault.kind, fault.error)).or_default();
        line.cases += 1;
        line.failed += answer.failed;
        line.caught += answer.caught;
        line.longest_milliseconds = line.longest_milliseconds.max(answer.milliseconds);
        let bad = match &*answer.result {
            "success" => {
                line.success += 1;
                false
            }
            "panic" => {
                line.panics += 1;
                true
            }
            "hang" => {
                line.hangs += 1;
                true
            }
            "leak" => {
                line.leaks += 1;
                true
            }
            "wrong" | "broken" => {
                line.wrong += 1;
                true
            }
            error => {
                *line.errors.entry(error.to_owned()).or_default() += 1;
                false
            }
        };
        if bad || verbose {
            println!(
                "{}: {} {}{} {}: {} {} ms {}",
                ALL[workload].0,
                KINDS[fault.kind],
                fault.nth,
                if fault.onward {
                    " and all after it"
                } else {
                    ""
                },
                ERRORS[fault.error].0,
                answer.result,
                answer.milliseconds,
                answer.text
            );
        }
    }
    Ok(())
}

fn print_table(lines: &BTreeMap<(usize, usize), Line>) -> bool {
    println!(
        "\n| kind | error | cases | calls failed | success | lost | memory | other errors | panics in wgpu, caught | panics | hangs | leaks | wrong | longest, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut all = Line::default();
    for ((kind, error), line) in lines {
        print_line(KINDS[*kind], ERRORS[*error].0, line);
        all.cases += line.cases;
        all.failed += line.failed;
        all.success += line.success;
        all.caught += line.caught;
        all.panics += line.panics;
        all.hangs += line.hangs;
        all.leaks += line.leaks;
        all.wrong += line.wrong;
        all.longest_milliseconds = all.longest_milliseconds.max(line.longest_milliseconds);
        for (error, count) in &line.errors {
            *all.errors.entry(error.clone()).or_default() += count;
        }
    }
    print_line("all", "", &all);
    all.panics + all.hangs + all.leaks + all.wrong == 0
}

fn print_line(kind: &str, error: &str, line: &Line) {
    let of = |names: &[&str]| -> u64 {
        let counted = line
            .errors
            .iter()
            .filter(|(name, _)| names.contains(&&***name));
        counted.map(|(_, count)| count).sum()
    };
    println!(
        "| {kind} | {error} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        line.cases,
        line.failed,
        line.success,
        of(&["lost"]),
        of(&["memory"]),
        of(&["refused", "no_device", "other"]),
        line.caught,
        line.panics,
        line.hangs,
        line.leaks,
        line.wrong,
        line.longest_milliseconds
    );
}

/// What a worker says of a case.
#[derive(Default)]
struct Answer {
    result: String,
    milliseconds: u64,
    failed: u64,
    caught: u64,
    calls: Vec<u64>,
    text: String,
}

impl Answer {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        Some(Self {
            result: words.next()?.to_owned(),
            milliseconds: words.next()?.parse().ok()?,
            failed: words.next()?.parse().ok()?,
            caught: words.next()?.parse().ok()?,
            calls: words
                .next()?
                .split(',')
                .filter_map(|number| number.parse().ok())
                .collect(),
            text: words.next().unwrap_or_default().to_owned(),
        })
    }

    fn none(result: &str) -> Self {
        Self {
            result: result.to_owned(),
            milliseconds: HANG.as_millis() as u64,
            ..Self::default()
        }
    }
}

struct Worker {
    child: Child,
    /// Workloads whose right result it knows.
    known: Vec<usize>,
    cases: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Worker {
    fn start(folder: &Path, number: usize) -> std::io::Result<Self> {
        let control = folder.join(format!("control-{number}"));
        std::fs::write(&control, [0; 4096])?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--worker")
            .env("FAULT_CONTROL", &control)
            .env("VK_LAYER_PATH", folder)
            .env("VK_INSTANCE_LAYERS", "VK_LAYER_TEST_faults")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let none = || std::io::Error::other("a child without pipes");
        let cases = child.stdin.take().ok_or_else(none)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(none)?).lines();
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            answers
                .map_while(Result::ok)
                .try_for_each(|line| send.send(line))
        });
        Ok(Self {
            child,
            known: Vec::new(),
            cases,
            answers: receive,
        })
    }

    /// Has it run a workload without a fault, so that it knows the right result.
    fn learn(&mut self, workload: usize, patience: Duration) -> std::io::Result<()> {
        if self.known.contains(&workload) {
            return Ok(());
        }
        let answer = self.ask((workload, Fault::default()), patience)?;
        if answer.result != "success" {
            let text = format!("{} without a fault: {}", ALL[workload].0, answer.text);
            return Err(std::io::Error::other(text));
        }
        self.known.push(workload);
        Ok(())
    }

    fn ask(&mut self, (workload, fault): Case, patience: Duration) -> std::io::Result<Answer> {
        let Fault {
            kind,
            error,
            nth,
            onward,
        } = fault;
        let onward = u8::from(onward);
        writeln!(self.cases, "{workload} {kind} {error} {nth} {onward}")?;
        Ok(match self.answers.recv_timeout(patience) {
            Ok(line) => Answer::parse(&line).unwrap_or_else(|| Answer::none("broken")),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.print_stacks();
                Answer::none("hang")
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Answer::none("died"),
        })
    }
}

impl Worker {
    /// Where there is a debugger, what each thread waits for.
    fn print_stacks(&self) {
        let process = self.child.id().to_string();
        let stacks = Command::new("gdb")
            .args(["-batch", "-p", &process, "-ex", "thread apply all bt 25"])
            .output();
        if let Ok(stacks) = stacks {
            println!("{}", String::from_utf8_lossy(&stacks.stdout));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Compiles the layer and writes its manifest beside it.
fn build_layer(folder: &Path) -> std::io::Result<()> {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/faults/layer.c");
    let library = folder.join("libfaults.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status()?;
    if !compiled.success() {
        return Err(std::io::Error::other("cc does not compile layer.c"));
    }
    let manifest = serde_json::json!({
        "file_format_version": "1.2.0",
        "layer": {
            "name": "VK_LAYER_TEST_faults",
            "type": "GLOBAL",
            "library_path": library,
            "api_version": "1.3.0",
            "implementation_version": "1",
            "description": "fails the n-th call of a kind",
        },
    });
    std::fs::write(folder.join("faults.json"), manifest.to_string())
}

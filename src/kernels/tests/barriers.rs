//! Barriers in the kernels with cooperative matrices: between a matrix that is stored and what reads it, and between what lanes
//! write and a matrix that is loaded from it.
//!
//! A software driver runs the lanes of a subgroup in step, so that it cannot show a barrier that is missing within one: this
//! follows each kernel from statement to statement instead, through calls and loops.

use std::collections::HashSet;

use naga::{AddressSpace, Block, Expression, Function, GlobalVariable, Handle, Module, Statement};

use super::shaders::{all_kernels, is_cooperative, parse};

/// What writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    /// A lane, which may read again what it wrote itself.
    Lane,
    /// All lanes of a subgroup.
    Matrix,
}

/// A walk through a kernel.
struct Walk<'a> {
    module: &'a Module,
    /// Variables written since the last barrier, and by what.
    written: HashSet<(Handle<GlobalVariable>, Writer)>,
    /// Stores of matrices that were met.
    stores: usize,
    /// Names of the functions around the statement.
    path: Vec<String>,
}

impl Walk<'_> {
    /// The variable of workgroup memory that a pointer leads into.
    fn variable(
        &self,
        function: &Function,
        pointer: Handle<Expression>,
    ) -> Option<Handle<GlobalVariable>> {
        match function.expressions[pointer] {
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => {
                self.variable(function, base)
            }
            Expression::GlobalVariable(variable) => {
                let space = self.module.global_variables[variable].space;
                (space == AddressSpace::WorkGroup).then_some(variable)
            }
            _ => None,
        }
    }

    fn read(&self, function: &Function, pointer: Handle<Expression>, after: &[Writer]) {
        if let Some(variable) = self.variable(function, pointer) {
            let name = &self.module.global_variables[variable].name;
            for &writer in after {
                assert!(
                    !self.written.contains(&(variable, writer)),
                    "{name:?} is read after it was written, without a barrier, in {:?}",
                    self.path
                );
            }
        }
    }

    fn write(&mut self, function: &Function, pointer: Handle<Expression>, writer: Writer) {
        let variable = self.variable(function, pointer);
        self.written
            .extend(variable.map(|variable| (variable, writer)));
    }

    fn block(&mut self, function: &Function, block: &Block) {
        for statement in block {
            match statement {
                Statement::Emit(range) => {
                    for expression in range.clone() {
                        match &function.expressions[expression] {
                            Expression::Load { pointer } => {
                                self.read(function, *pointer, &[Writer::Matrix]);
                            }
                            Expression::CooperativeLoad { data, .. } => {
                                let any = [Writer::Lane, Writer::Matrix];
                                self.read(function, data.pointer, &any);
                            }
                            _ => {}
                        }
                    }
                }
                Statement::Store { pointer, .. } => {
                    self.write(function, *pointer, Writer::Lane);
                }
                Statement::CooperativeStore { data, .. } => {
                    self.stores += 1;
                    self.write(function, data.pointer, Writer::Matrix);
                }
                Statement::ControlBarrier(_) | Statement::WorkGroupUniformLoad { .. } => {
                    self.written.clear();
                }
                Statement::Block(block) => self.block(function, block),
                Statement::If { accept, reject, .. } => {
                    let before = self.written.clone();
                    self.block(function, accept);
                    let after = std::mem::replace(&mut self.written, before);
                    self.block(function, reject);
                    self.written.extend(after);
                }
                Statement::Loop {
                    body, continuing, ..
                } => {
                    // Twice: what the end of the body writes, its begin reads.
                    for _ in 0..2 {
                        self.block(function, body);
                        self.block(function, continuing);
                    }
                }
                Statement::Call { function, .. } => {
                    let called = &self.module.functions[*function];
                    self.path.push(called.name.clone().unwrap_or_default());
                    self.block(called, &called.body);
                    self.path.pop();
                }
                _ => {}
            }
        }
    }
}

fn walk(module: &Module) -> usize {
    let mut walk = Walk {
        module,
        written: HashSet::new(),
        stores: 0,
        path: Vec::new(),
    };
    let function = &module.entry_points[0].function;
    walk.block(function, &function.body);
    walk.stores
}

/// What lanes and matrices write is read after a barrier.
pub fn waits_for_what_it_reads(module: &Module) {
    // Each kernel stores matrices; else the walk would have missed them.
    assert!(walk(module) > 0);
}

/// The walk finds a barrier that is missing.
#[test]
fn a_missing_barrier_is_found() {
    let mut kernels = all_kernels().into_iter().map(|(kernel, _)| kernel);
    let kernel = kernels.find(is_cooperative).expect("is one");
    let source = parse(&kernel).0.text;
    let read = "for (var i = 0u; i < LANE_ROWS; i++) {\n            soften";
    let stored = format!("workgroupBarrier();\n        {read}");
    assert!(source.contains(&stored));
    let broken = source.replace(&stored, read);
    let module = naga::front::wgsl::parse_str(&broken).expect("valid");
    assert!(std::panic::catch_unwind(|| walk(&module)).is_err());
}

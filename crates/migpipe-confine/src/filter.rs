//! From a table to a BPF program.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use crate::call::{Call, Check};

/// The calls of one kind of thread.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    /// What the thread is called.
    pub thread: &'static str,
    /// What it may call.
    pub tables: &'static [&'static [Call]],
}

impl Filter {
    /// Every line of it.
    pub fn calls(&self) -> impl Iterator<Item = &'static Call> {
        self.tables.iter().copied().flatten()
    }

    /// The program that answers everything outside with `outside`.
    pub(crate) fn compile(
        &self,
        also: &[Call],
        outside: SeccompAction,
    ) -> Result<BpfProgram, BackendError> {
        let mut rules: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
        for call in self.tables.iter().copied().flatten().chain(also) {
            let entry = rules.entry(call.number).or_insert_with(|| Some(Vec::new()));
            if call.checks.is_empty() {
                // Allowed whatever the arguments: no other line matters.
                *entry = None;
            } else if let Some(entry) = entry {
                let checks = call.checks.iter().map(condition).collect::<Result<_, _>>()?;
                entry.push(SeccompRule::new(checks)?);
            }
        }
        let mut program = absent(|number| !rules.contains_key(&number));
        let rules = rules.into_iter().map(|(call, rules)| (call, rules.unwrap_or_default()));
        let filter =
            SeccompFilter::new(rules.collect(), outside, SeccompAction::Allow, TargetArch::x86_64)?;
        program.extend(BpfProgram::try_from(filter)?);
        Ok(program)
    }
}

fn condition(check: &Check) -> Result<SeccompCondition, BackendError> {
    let (arg, length, op, value) = match *check {
        Check::Is(arg, value) => (arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value)),
        Check::Not(arg, value) => {
            (arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, u64::from(value))
        }
        Check::Bits { arg, mask, set } => {
            (arg, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), set)
        }
        Check::ThisProcess(arg) => {
            let own = u64::from(std::process::id());
            (arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)
        }
    };
    SeccompCondition::new(arg, length, op, value)
}

/// Calls that the C library makes by itself in any thread and does without: they are answered with
/// ENOSYS where a filter does not have them, whatever becomes of other calls outside.
pub(crate) const ABSENT: &[Call] = crate::calls![
    SYS_clone3 => "its flags are in memory, where no filter sees them; clone has them in an argument";
    SYS_openat => "where it is not listed: glibc counts the processors for its heaps";
];

/// The beginning of a program, which answers those of [`ABSENT`] that are `missing` and leaves
/// everything else to what follows.
fn absent(missing: impl Fn(i64) -> bool) -> BpfProgram {
    /// Offset of the number in struct seccomp_data.
    const NUMBER: u32 = 0;
    let op = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let mut program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NUMBER)];
    for call in ABSENT.iter().filter(|call| missing(call.number)) {
        program.extend([
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call.number as u32),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        ]);
    }
    program
}

//! Every run that a driver can come to: a double of what it drives takes each of its results from a
//! script, and the scripts are gone through one after the other.

use std::cell::RefCell;

use super::failure::{Failure, FailureKind, HandoverError};

/// All kinds of failures.
pub const KINDS: [FailureKind; 9] = [
    FailureKind::Failed,
    FailureKind::Undone,
    FailureKind::Refused,
    FailureKind::GivenUp,
    FailureKind::Cancelled,
    FailureKind::GaveUp,
    FailureKind::OtherHost,
    FailureKind::MayHaveRun,
    FailureKind::CannotAsk,
];

/// An error that is nothing but its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestError(pub FailureKind);

impl Failure for TestError {
    fn kind(&self) -> FailureKind {
        self.0
    }
}

impl From<HandoverError> for TestError {
    fn from(error: HandoverError) -> Self {
        Self(error.kind())
    }
}

/// The choices of one run: which, of how many.
#[derive(Debug, Default)]
pub struct Script {
    choices: RefCell<Vec<(usize, usize)>>,
    at: RefCell<usize>,
}

impl Script {
    /// One of `options`, as the script says; the first where it says nothing yet.
    pub fn choose<T: Copy>(&self, options: &[T]) -> T {
        let (mut choices, mut at) = (self.choices.borrow_mut(), self.at.borrow_mut());
        if *at == choices.len() {
            choices.push((0, options.len()));
        }
        let (choice, of) = choices[*at];
        assert_eq!(of, options.len(), "the same script leads to the same operations");
        *at += 1;
        options[choice]
    }

    /// Success, or any failure.
    pub fn any_result(&self) -> Result<(), TestError> {
        let mut options = vec![Ok(())];
        options.extend(KINDS.map(|kind| Err(TestError(kind))));
        self.choose(&options)
    }

    /// The script after this one; false if this was the last.
    fn next(&mut self) -> bool {
        let choices = self.choices.get_mut();
        choices.truncate(*self.at.get_mut());
        *self.at.get_mut() = 0;
        while let Some((choice, of)) = choices.pop() {
            if choice + 1 < of {
                choices.push((choice + 1, of));
                return true;
            }
        }
        false
    }
}

/// Runs `run` with every script that there is, and returns how many those are.
pub fn with_every_script(mut run: impl FnMut(&Script)) -> usize {
    let mut script = Script::default();
    let mut runs = 0;
    loop {
        run(&script);
        runs += 1;
        if !script.next() {
            return runs;
        }
    }
}

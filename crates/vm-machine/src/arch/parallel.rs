//! The vCPUs of a large guest, several at a time: to save one takes some 150 us, to restore it as
//! much, and the guest stands still meanwhile.
#![forbid(unsafe_code)]

use std::thread::{self, Builder};

/// So many vCPUs are worth a thread, whose start and end take as long as one of them.
const LEAST_PER_THREAD: usize = 4;

/// Most threads, the caller's included: KVM takes locks of the whole machine here and there. Where
/// there are fewer processors, they take turns.
const MAX_THREADS: usize = 4;

/// Does `work` to each item, which it is told the number of, and returns what came of it in the order
/// of the items. Nothing is left undone where no thread can be had.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
    let threads = (items.len() / LEAST_PER_THREAD).clamp(1, MAX_THREADS);
    let length = items.len().div_ceil(threads).max(1);
    let serve = |(chunk, items): (usize, &[T])| -> Vec<R> {
        let first = chunk * length;
        items.iter().enumerate().map(|(at, item)| work(first + at, item)).collect()
    };
    let serve = &serve;
    thread::scope(|scope| {
        let mut chunks = items.chunks(length).enumerate();
        let own = chunks.next();
        let others: Vec<_> = chunks
            .map(|chunk| {
                let thread = Builder::new().name("vcpu-state".into());
                thread.spawn_scoped(scope, move || serve(chunk)).map_err(|_| chunk)
            })
            .collect();
        let mut done = own.map(serve).unwrap_or_default();
        for other in others {
            done.extend(match other {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                }
                Err(chunk) => serve(chunk),
            });
        }
        done
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread::ThreadId;

    use super::*;

    #[test]
    fn every_item_is_served_once_and_in_order() {
        for count in [0, 1, 3, 4, 7, 8, 9, 31, 32, 33, 254] {
            let items: Vec<usize> = (100..100 + count).collect();
            let found = map(&items, |number, item| (number, *item));
            let expected: Vec<_> = items.iter().copied().enumerate().collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_small_guest_takes_no_thread_and_a_large_one_takes_several() {
        let threads_for = |count: usize| {
            let seen: Mutex<HashSet<ThreadId>> = Mutex::default();
            map(&vec![(); count], |_, ()| seen.lock().unwrap().insert(thread::current().id()));
            seen.into_inner().unwrap().len()
        };
        assert_eq!(threads_for(LEAST_PER_THREAD * 2 - 1), 1);
        assert_eq!(threads_for(LEAST_PER_THREAD * 2), 2);
        assert_eq!(threads_for(LEAST_PER_THREAD * 40), MAX_THREADS);
    }
}

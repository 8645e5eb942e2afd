//! Every byte arrives as it was at the last instant, whatever was written when. The guests are
//! scripted: nothing of this is left to luck, and none needs KVM.

use migpipe_tests::{Host, Moment, Scripted, Writer};
use migpipe_units::PAGE_SIZE;

/// Sends a scripted guest with these options, from one scripted vmrun to another: both, and what
/// mig-recv ended with and said.
fn send(
    options: &str,
    pages: &[u8],
    script: impl Fn(Moment, &Writer<'_>) + Send + Sync + 'static,
) -> (Scripted, Scripted, Option<i32>, String) {
    let host = Host::new();
    let source = Scripted::running(host.path("a.sock"), pages, script);
    let destination = Scripted::incoming(host.path("b.sock"));
    let done = host.sh(&format!(
        "mig-send -q {options} {} | mig-recv -q --vm {}",
        source.socket().display(),
        destination.socket().display(),
    ));
    (source, destination, done.status, done.stderr)
}

fn page(memory: &[u8], number: usize) -> &[u8] {
    let page = PAGE_SIZE as usize;
    &memory[number * page..][..page]
}

#[test]
fn what_is_written_after_the_last_round_arrives() {
    for options in ["", "--classic", "--zero-copy", "--verify"] {
        let (a, b, status, said) = send(options, &[1, 2, 3, 4], |moment, guest| match moment {
            Moment::Harvested => {}
            // One that was sent, and one that never existed before.
            Moment::Pausing => [1, 40].iter().for_each(|page| guest.write(*page, 0x55)),
            Moment::Saving => guest.write(2, 0x66),
        });
        assert_eq!(status, Some(0), "{options}: {said}");
        assert!(b.may_run() && !a.may_run(), "{options}");
        assert_eq!(page(&a.memory(), 2)[0], 0x66);
        assert!(a.memory() == b.memory(), "{options}: the memories differ");
    }
}

#[test]
fn what_is_written_in_every_round_arrives_as_it_was_last() {
    let (a, b, status, said) = send("--min-pages 0", &[7; 32], |moment, guest| match moment {
        Moment::Harvested => (0..8).for_each(|page| guest.write(page, 0x11)),
        Moment::Pausing => (4..12).for_each(|page| guest.write(page, 0x22)),
        Moment::Saving => (6..14).for_each(|page| guest.write(page, 0x33)),
    });
    assert_eq!(status, Some(0), "{said}");
    assert!(a.memory() == b.memory(), "the memories differ");
}

#[test]
fn a_page_that_becomes_empty_is_empty_at_the_destination() {
    let (a, b, status, said) = send("", &[9; 16], |moment, guest| {
        if moment == Moment::Pausing {
            guest.write(5, 0);
            // And one that was empty, was filled and is empty again.
            guest.write(20, 1);
            guest.write(20, 0);
        }
    });
    assert_eq!(status, Some(0), "{said}");
    assert!(page(&b.memory(), 5).iter().all(|byte| *byte == 0), "there is still what was there");
    assert!(a.memory() == b.memory(), "the memories differ");
}

#[test]
fn a_page_that_the_dirty_log_misses_is_found_by_verify_and_by_nothing_else() {
    let lose_one = |moment, guest: &Writer<'_>| {
        if moment == Moment::Saving {
            guest.write_unlogged(3, 0x77);
        }
    };
    let (a, b, status, said) = send("", &[1; 8], lose_one);
    assert_eq!(status, Some(0), "{said}");
    assert!(a.memory() != b.memory(), "nothing was lost: this shows nothing");

    let (_a, b, status, said) = send("--verify", &[1; 8], lose_one);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("is not what the source had"), "{said}");
    assert!(!b.may_run(), "the guest runs with memory that is not its own");
}

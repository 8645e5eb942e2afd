use super::*;
use migpipe_units::Gfn;
use nix::fcntl::fcntl;
use nix::sys::memfd::{MFdFlags, memfd_create};

fn guest(pages: u64, access: Access) -> (GuestMemory, GuestMemory) {
    guest_read(pages, access, Access::Read)
}

fn guest_read(pages: u64, access: Access, read: Access) -> (GuestMemory, GuestMemory) {
    let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, (pages * PAGE_SIZE) as i64).unwrap();
    let regions = [MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(pages) }];
    let again = fd.try_clone().unwrap();
    (
        GuestMemory::map(&regions, vec![fd], access).unwrap(),
        GuestMemory::map(&regions, vec![again], read).unwrap(),
    )
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange { region: RegionId(0), first, count: Pages(count) }
}

#[test]
fn what_was_never_touched_does_not_exist() {
    let (mut memory, reader) = guest(4096, Access::ReadWrite);
    assert_eq!(reader.existing().unwrap(), []);
    memory.pages_mut(range(1000, 1)).fill(7);
    let existing = reader.existing().unwrap();
    assert!(existing.iter().any(|run| run.first <= 1000 && 1000 < run.first + run.count.0));
    let pages: u64 = existing.iter().map(|run| run.count.0).sum();
    assert!(pages <= 512, "more than one huge page came into being: {pages}");
}

#[test]
fn what_the_guest_has_given_back_reads_as_zeros_and_is_not_made_to_exist() {
    use nix::fcntl::{FallocateFlags, fallocate};
    let (memory, reader) = guest_read(64, Access::ReadWrite, Access::ReadSparse);
    memory.populator().populate(range(0, 64));
    let pages = || -> u64 { reader.existing().unwrap().iter().map(|run| run.count.0).sum() };
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&memory.regions[0].file, hole, 8 * 4096, 16 * 4096).unwrap();
    assert_eq!(pages(), 48);
    let mut buffer = vec![1; 64 * PAGE_SIZE as usize];
    assert!(reader.copy_pages(range(0, 64), &mut buffer).iter().all(|byte| *byte == 0));
    assert_eq!(reader.first_bytes(RegionId(0), 9), [0; 16]);
    assert_eq!(pages(), 48);
}

#[test]
fn a_source_copies_what_the_guest_wrote() {
    let (mut memory, reader) = guest(64, Access::ReadWrite);
    memory.pages_mut(range(3, 2)).fill(9);
    let mut buffer = vec![0; 4 * PAGE_SIZE as usize];
    let copied = reader.copy_pages(range(2, 4), &mut buffer);
    let firsts: Vec<u8> = copied.chunks(PAGE_SIZE as usize).map(|page| page[0]).collect();
    assert_eq!(firsts, [0, 9, 9, 0]);
}

#[test]
fn populated_pages_exist_and_hold_zeros() {
    let (memory, reader) = guest(64, Access::ReadWrite);
    memory.populator().populate(range(0, 64));
    memory.populator().populate(range(60, 64));
    let existing: u64 = reader.existing().unwrap().iter().map(|run| run.count.0).sum();
    assert_eq!(existing, 64);
    let mut buffer = vec![1; 64 * PAGE_SIZE as usize];
    assert!(reader.copy_pages(range(0, 64), &mut buffer).iter().all(|byte| *byte == 0));
}

#[test]
#[should_panic(expected = "beyond the end")]
fn no_range_reaches_beyond_its_region() {
    let (_, reader) = guest(64, Access::ReadWrite);
    reader.copy_pages(range(60, 5), &mut vec![0; 5 * PAGE_SIZE as usize]);
}

#[test]
fn a_memfd_that_is_too_short_is_refused() {
    let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    let regions = [MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(1) }];
    let refused = GuestMemory::map(&regions, vec![fd], Access::Read);
    assert!(matches!(refused, Err(MemoryError::WrongSize { .. })));
}

#[test]
fn a_client_has_no_guest_memory_in_its_core_dumps() {
    let (memory, reader) = guest(16, Access::ReadWrite);
    for mapped in [&memory, &reader] {
        let begin = format!("{:x}-", mapped.regions[0].mapping.as_ptr() as usize);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begin));
        let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.contains(" dd"), "{flags}");
    }
}

#[test]
fn memory_is_given_back_and_its_regions_are_told() {
    let (memory, reader) = guest(16, Access::ReadWrite);
    let regions: Vec<_> = memory.regions().collect();
    assert_eq!(regions, [(RegionId(0), Pages(16))]);
    let begin = format!("{:x}-", memory.regions[0].mapping.as_ptr() as usize);
    let is_mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| line.starts_with(&begin) && line.contains("memfd:test"))
    };
    assert!(is_mapped());
    drop(memory);
    assert!(!is_mapped());
    drop(reader);
}

#[test]
fn a_destination_asks_for_huge_pages_and_a_source_does_not() {
    let (memory, reader) = guest(1024, Access::ReadWrite);
    let asks = |memory: &GuestMemory| {
        let begin = format!("{:x}-", memory.regions[0].mapping.as_ptr() as usize);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begin));
        lines.find(|line| line.starts_with("VmFlags:")).unwrap().contains(" hg")
    };
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        eprintln!("SKIPPED: this kernel has no transparent huge pages");
        return;
    }
    assert!(asks(&memory) && !asks(&reader));
}

#[test]
fn the_first_bytes_of_a_page_are_those_of_that_page() {
    let (mut memory, reader) = guest(16, Access::ReadWrite);
    memory.pages_mut(range(9, 1)).fill(7);
    assert_eq!(reader.first_bytes(RegionId(0), 9), [7; 16]);
    assert_eq!(reader.first_bytes(RegionId(0), 8), [0; 16]);
}

#[test]
fn a_pipe_gets_the_bytes_of_the_pages_from_where_it_was_left() {
    use nix::fcntl::{FcntlArg, OFlag};
    use std::io::Read;
    let (mut memory, reader) = guest(16, Access::ReadWrite);
    for page in 0..16 {
        memory.pages_mut(range(page, 1)).fill(page as u8);
    }
    let (mut from, into) = io::pipe().unwrap();
    fcntl(&into, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let (pages, skipped) = (range(3, 2), 4000);
    let moved = match reader.splice_into(pages, skipped, into.as_fd()) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            eprintln!("SKIPPED: this kernel does not splice memory");
            return;
        }
        moved => moved.unwrap(),
    };
    assert_eq!(moved, 2 * PAGE_SIZE as usize - skipped);
    let mut bytes = vec![0; moved];
    from.read_exact(&mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[95], bytes[96], bytes[moved - 1]), (3, 3, 4, 4));
}

#[test]
fn a_part_of_a_region_is_populated_and_nothing_beyond_it() {
    let (memory, reader) = guest(64, Access::ReadWrite);
    memory.populator().populate(range(8, 10));
    let existing: u64 = reader.existing().unwrap().iter().map(|run| run.count.0).sum();
    assert_eq!(existing, 10);
}

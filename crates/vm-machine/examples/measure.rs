use std::time::{Duration, Instant};
use vm_machine::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let spec = &a[1];
    let cpus: u32 = a[2].parse().unwrap();
    let n: usize = a[3].parse().unwrap();
    let c = |p: &str| vm_devices::ConsoleSpec::File(p.into());
    let _ = std::fs::remove_file("/tmp/m.console");
    let mut m = Machine::boot(&MachineConfig {
        name: "x".into(),
        kernel: Kernel::Builtin(spec.parse().unwrap()),
        cmdline: String::new(),
        mem: "512M".parse().unwrap(),
        cpus,
        console: c("/tmp/m.console"),
        hugetlb: false,
    })
    .unwrap();
    m.resume().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let cpu = || {
        let s = std::fs::read_to_string("/proc/self/stat").unwrap();
        let f: Vec<&str> = s.rsplit(") ").next().unwrap().split(' ').collect();
        f[11].parse::<u64>().unwrap() + f[12].parse::<u64>().unwrap()
    };
    let c0 = cpu();
    std::thread::sleep(Duration::from_secs(3));
    println!("cpu {} ticks in 3s", cpu() - c0);
    let mut v = [vec![], vec![], vec![], vec![], vec![], vec![], vec![]];
    for _ in 0..n {
        std::thread::sleep(Duration::from_millis(30));
        let t = Instant::now();
        let mut d = Machine::incoming(
            &m.describe(),
            &Overrides { name: None, console: Some(c("/tmp/m.console")) },
        )
        .unwrap();
        v[0].push(t.elapsed());
        m.dirty_log_start().unwrap();
        let mut b = vec![0; m.dirty_log_words()];
        for (x, y) in m.memory_fds().iter().zip(d.memory_fds()) {
            use std::os::fd::AsRawFd;
            copy(x.1.as_raw_fd(), y.1.as_raw_fd());
        }
        let t = Instant::now();
        let p = m.pause().unwrap();
        v[1].push(t.elapsed());
        let t = Instant::now();
        let s = m.save().unwrap();
        v[2].push(t.elapsed());
        let t = Instant::now();
        m.dirty_log_harvest(&mut b).unwrap();
        v[3].push(t.elapsed());
        use vm_memory::{Bytes, GuestAddress};
        let mut pg = [0u8; 4096];
        for (w, x) in b.iter().enumerate() {
            for i in 0..64 {
                if x >> i & 1 == 1 {
                    let a = GuestAddress((w as u64 * 64 + i) * 4096);
                    m.memory().read_slice(&mut pg, a).unwrap();
                    d.memory().write_slice(&pg, a).unwrap();
                }
            }
        }
        let t = Instant::now();
        d.load(s).unwrap();
        v[4].push(t.elapsed());
        let t = Instant::now();
        d.resume().unwrap();
        while d.first_instruction_after().is_none() {
            std::thread::yield_now()
        }
        v[5].push(t.elapsed());
        v[6].push(d.first_instruction_after().unwrap().since(p));
        m = d;
    }
    for (n, v) in ["incoming", "pause", "save", "harvest", "load", "resume->run", "downtime"]
        .iter()
        .zip(&mut v)
    {
        v.sort();
        println!(
            "{n:12} p50 {:?} p99 {:?} max {:?}",
            v[v.len() / 2],
            v[v.len() * 99 / 100],
            v[v.len() - 1]
        );
    }
}
fn copy(a: i32, b: i32) {
    use std::os::fd::BorrowedFd;
    use std::os::unix::fs::FileExt;
    let f = |x: i32| {
        std::fs::File::from(unsafe { BorrowedFd::borrow_raw(x) }.try_clone_to_owned().unwrap())
    };
    let (a, b) = (f(a), f(b));
    let mut buf = vec![0; 1 << 20];
    let z = vec![0; 1 << 20];
    let n = a.metadata().unwrap().len();
    for i in 0..n >> 20 {
        a.read_exact_at(&mut buf, i << 20).unwrap();
        if buf != z {
            b.write_all_at(&buf, i << 20).unwrap();
        }
    }
}

use mig_engine::handover::Form;
use mig_model::graph;
use mig_model::world::{Bounds, World};
use stateright::{Checker, Model};

fn check(bounds: Bounds) {
    let world = World::new(bounds);
    let t = std::time::Instant::now();
    let checker = world.checker().threads(2).spawn_bfs().join();
    println!(
        "{}: {} unique, depth {}, {:?}",
        bounds.name,
        checker.unique_state_count(),
        checker.max_depth(),
        t.elapsed()
    );
    for (name, path) in checker.discoveries() {
        println!("== {name}");
        println!("{:?}", path.last_state());
        for a in path.into_actions() {
            println!("   {a:?}");
        }
    }
    let t = std::time::Instant::now();
    if std::env::var("NOG").is_ok() {
        return;
    }
    let found = graph::explore(&world);
    println!(
        "{} {} {} stuck {} circular {} {:?}",
        found.states,
        found.steps,
        found.settled,
        found.stuck_states,
        found.circular,
        t.elapsed()
    );
    if let Some((actions, state)) = found.stuck {
        println!("{state:#?}");
        for a in actions {
            println!("   {a:?}");
        }
    }
}

#[test]
fn probe() {
    let v: Vec<u8> = std::env::var("B")
        .unwrap_or("0,0,1,0,0".into())
        .split(',')
        .map(|x| x.parse().unwrap())
        .collect();
    let form = |x| match x {
        0 => None,
        1 => Some(Form::BothWays),
        2 => Some(Form::SeparateCommit),
        _ => Some(Form::OneWay),
    };
    check(Bounds {
        name: "probe",
        forms: [form(v[0]), form(v[1])],
        twice: v[2] == 1,
        resolvers: v[3] as usize,
        crashes: v[4],
        quits: v[5],
        faults: v[6],
        cuts: v[7] == 1, at_once: v[8] == 1,
    });
}

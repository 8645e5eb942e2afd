//! What a checker of single states cannot say: that every run ends, and that it can always end
//! well.
//!
//! The whole graph of states is built once. Two queries are asked of it:
//! - Is there a circle? Without the operator's new `--resolve` there must be none: then every run
//!   comes to rest, whatever fails.
//! - Can a good end be reached from *every* state by nothing but what goes on by itself and
//!   `--resolve`? A fair model that stops failing then gets there: a set of states that it could
//!   stay in for ever would hold one without a way out.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::Model;

use crate::action::Action;
use crate::bounds::HandoverModel;
use crate::properties::is_settled;
use crate::state::State;

/// What was found.
#[derive(Debug)]
pub struct Findings {
    /// States.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// States that are a good end.
    pub settled: usize,
    /// A state from which no good end can be reached, and how it came about.
    pub stuck: Option<(Vec<Action>, State)>,
    /// How many of those there are.
    pub stuck_states: usize,
    /// States on or behind a circle.
    pub circular: usize,
}

struct Graph {
    /// By which step each state was first reached, and from where.
    parents: Vec<Option<(u32, Action)>>,
    /// For each step: from, to, and whether it needs no fault.
    steps: Vec<(u32, u32, bool)>,
    /// How many steps other than a new `--resolve` lead to each state.
    incoming: Vec<u32>,
    settled: Vec<bool>,
}

/// Builds the graph and asks both queries.
pub fn explore(model: &HandoverModel) -> Findings {
    let graph = build(model);
    let stuck = stuck(&graph);
    let first = stuck.iter().position(|stuck| *stuck);
    Findings {
        states: graph.parents.len(),
        steps: graph.steps.len(),
        settled: graph.settled.iter().filter(|settled| **settled).count(),
        stuck: first.map(|at| path(model, &graph, at)),
        stuck_states: stuck.iter().filter(|stuck| **stuck).count(),
        circular: circular(&graph),
    }
}

/// Sixty-four bits for each state in place of the state itself: with the millions that there are,
/// two alike are a matter of less than one check in ten million.
fn fingerprint(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

fn build(model: &HandoverModel) -> Graph {
    let mut graph =
        Graph { parents: Vec::new(), steps: Vec::new(), incoming: Vec::new(), settled: Vec::new() };
    let mut known: HashMap<u64, u32> = HashMap::new();
    let mut level: Vec<(u32, State)> = Vec::new();
    let mut add = |graph: &mut Graph, state: &State, parent| {
        let next = graph.parents.len() as u32;
        let number = *known.entry(fingerprint(state)).or_insert(next);
        if number == next {
            graph.parents.push(parent);
            graph.incoming.push(0);
            graph.settled.push(is_settled(model, state));
        }
        (number, number == next)
    };
    for state in model.init_states() {
        let (number, _) = add(&mut graph, &state, None);
        level.push((number, state));
    }
    let mut actions = Vec::new();
    while !level.is_empty() {
        let mut below = Vec::new();
        for (from, state) in level {
            actions.clear();
            model.actions(&state, &mut actions);
            for action in &actions {
                let Some(next) = model.next_state(&state, *action) else { continue };
                let (to, new) = add(&mut graph, &next, Some((from, *action)));
                let again = matches!(action, Action::Resolve(_));
                graph.steps.push((from, to, action.is_recovery()));
                if !again {
                    graph.incoming[to as usize] += 1;
                } else if let Some(last) = graph.steps.last_mut() {
                    // Marked, so that it does not count as a part of a circle.
                    last.0 |= AGAIN;
                }
                if new {
                    below.push((to, next));
                }
            }
        }
        level = below;
    }
    graph
}

/// Marks a step by which the operator starts `--resolve`.
const AGAIN: u32 = 1 << 31;

/// For each state, whether no good end can be reached from it.
fn stuck(graph: &Graph) -> Vec<bool> {
    let back = neighbours(graph, |step| step.2.then_some((step.1, step.0 & !AGAIN)));
    let mut stuck = vec![true; graph.parents.len()];
    let mut open: Vec<u32> =
        (0..graph.parents.len() as u32).filter(|at| graph.settled[*at as usize]).collect();
    for at in &open {
        stuck[*at as usize] = false;
    }
    while let Some(at) = open.pop() {
        for before in back.of(at) {
            if std::mem::take(&mut stuck[*before as usize]) {
                open.push(*before);
            }
        }
    }
    stuck
}

/// How many states are left when one after the other those are taken away that nothing leads to.
fn circular(graph: &Graph) -> usize {
    let forward = neighbours(graph, |step| (step.0 & AGAIN == 0).then_some((step.0, step.1)));
    let mut incoming = graph.incoming.clone();
    let mut open: Vec<u32> =
        (0..incoming.len() as u32).filter(|at| incoming[*at as usize] == 0).collect();
    let mut left = incoming.len();
    while let Some(at) = open.pop() {
        left -= 1;
        for next in forward.of(at) {
            incoming[*next as usize] -= 1;
            if incoming[*next as usize] == 0 {
                open.push(*next);
            }
        }
    }
    left
}

struct Neighbours {
    starts: Vec<u32>,
    to: Vec<u32>,
}

impl Neighbours {
    fn of(&self, at: u32) -> &[u32] {
        let at = at as usize;
        &self.to[self.starts[at] as usize..self.starts[at + 1] as usize]
    }
}

fn neighbours(graph: &Graph, edge: impl Fn(&(u32, u32, bool)) -> Option<(u32, u32)>) -> Neighbours {
    let mut starts = vec![0; graph.parents.len() + 1];
    for (from, _) in graph.steps.iter().filter_map(&edge) {
        starts[from as usize + 1] += 1;
    }
    for at in 1..starts.len() {
        starts[at] += starts[at - 1];
    }
    let mut fill = starts.clone();
    let mut to = vec![0; starts[graph.parents.len()] as usize];
    for (from, next) in graph.steps.iter().filter_map(&edge) {
        to[fill[from as usize] as usize] = next;
        fill[from as usize] += 1;
    }
    Neighbours { starts, to }
}

fn path(model: &HandoverModel, graph: &Graph, mut at: usize) -> (Vec<Action>, State) {
    let mut actions = Vec::new();
    while let Some((from, action)) = graph.parents[at] {
        actions.push(action);
        at = from as usize;
    }
    actions.reverse();
    let mut state = model.init_states()[0];
    for action in &actions {
        state = model.next_state(&state, *action).expect("the path was walked before");
    }
    (actions, state)
}

//! What choosing a variant and learning from it takes, for a frame.

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use vggd::event::duration;
use vggd::select::{Profile, Selector};
use vggd::simulate::trace::Scenario;
use vggd::simulate::{PI4, profile};

fn select(criterion: &mut Criterion) {
    let candidates = profile(PI4.as_bytes()).unwrap();
    let profiles: Vec<Profile> = candidates
        .iter()
        .map(|candidate| Profile {
            compute: duration(candidate.compute_ms),
            memory: duration(candidate.memory_ms),
            accuracy: candidate.accuracy,
        })
        .collect();
    for scenario in [Scenario::Steady, Scenario::All] {
        let trace = scenario.trace(400.0, 0);
        let (mut selector, mut frames) = (Selector::new(&profiles, 0.05), trace.iter().cycle());
        let name = format!("pick and observe, {} variants, {scenario}", profiles.len());
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| {
                let frame = frames.next().expect("a cycle has no end");
                let choice = selector.pick(black_box(duration(frame.budget_ms)), |_| true).unwrap();
                let candidate = &candidates[choice.variant];
                let took = candidate.compute_ms * frame.slowdown
                    + candidate.memory_ms * frame.memory_slowdown;
                selector.observe(choice.variant, duration(took));
            });
        });
    }
}

criterion_group!(benches, select);
criterion_main!(benches);

//! Whole variants of the sample set, or of the one in `VGGD_SET`: loading one, and an inference on one thread and
//! on all cores.

#![allow(missing_docs)]

use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use vggd::manifest::ModelSet;
use vggd::model::{Engine, Model};

fn variants(criterion: &mut Criterion) {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/models/sample");
    let folder = std::env::var("VGGD_SET").unwrap_or_else(|_| sample.to_owned());
    let set = ModelSet::open(Path::new(&folder)).unwrap();
    for variant in &set.manifest.variants {
        let mut group = criterion.benchmark_group(&variant.name);
        group.sample_size(20);
        for (name, threads) in [("1 thread", 1), ("all cores", 0)] {
            let engine = Engine::new(threads);
            let model = Model::load(&set, variant, &engine).unwrap();
            let input = vec![0.5; 3 * model.side * model.side];
            group.bench_function(name, |bencher| bencher.iter(|| model.infer(&input).unwrap()));
        }
        // A new engine shares nothing with the models before.
        group.bench_function("load", |bencher| {
            bencher.iter(|| Model::load(&set, variant, &Engine::new(0)).unwrap());
        });
        group.finish();
    }
}

criterion_group!(benches, variants);
criterion_main!(benches);

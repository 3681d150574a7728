//! The three linear layers for other classes: the last in closed form, then all by gradient descent.
//!
//! There are far more weights than photos. What gradients add to the first layer is a sum of its
//! inputs, so only the factors of that sum are computed and kept, through the inputs' inner
//! products, until it is written out at the end.

use super::{AdaptError, FOLDS};
use crate::forward::{affine, linear};
use crate::judge::{first, softmax};
use crate::network::Layer;
use crate::progress::Progress;
use crate::regression::{solve, times, times_transposed, transposed_times};
use crate::tensor::Tensor;

/// Ridges that are tried for the last layer, as shares of the mean square of its inputs.
const RIDGES: [f64; 5] = [1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// Factors that are tried from the closed form's answers, 0 to 1, to logits.
const SHARPNESSES: [f64; 6] = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Steps of gradient descent at most.
const STEPS: usize = 20;

/// After so many steps cross-validation looks whether they were good.
const LOOKS: usize = 4;

/// How far the first step moves a layer's weights, as a share of their norm. Steps become smaller
/// towards the end.
const RATE: f32 = 0.02;

/// What of a step's direction remains in the next one.
const MOMENTUM: f32 = 0.8;

/// What there is to learn from.
pub(super) struct Lessons {
    /// A row for each view of each photo; the first view of each is the whole photo.
    pub(super) features: Vec<f32>,
    /// Views of a photo.
    pub(super) views: usize,
    /// Of each photo.
    pub(super) labels: Vec<usize>,
    /// How many there are.
    pub(super) classes: usize,
}

/// A classifier, and how right it is.
pub(super) struct Classifier<'a> {
    pub(super) linears: Vec<Layer<'a>>,
    /// For each photo, whether classifiers fitted without it recognised it.
    pub(super) right: Vec<bool>,
}

/// What does not change while fitting.
struct Desk<'a> {
    linears: &'a [Layer<'a>],
    lessons: &'a Lessons,
    rows: usize,
    /// Inner products of inputs of the first layer, the bias's 1 included: rows x rows.
    inputs: Vec<f32>,
    /// What the first layer gave before: rows x units.
    before: Vec<f32>,
    /// What the last layer read before: rows x units.
    hidden: Vec<f32>,
    /// Inner products of these, the bias's constant included: rows x rows.
    products: Vec<f32>,
    /// The square of that constant.
    constant: f32,
}

/// A classifier that is being fitted to some rows.
struct State {
    rows: Vec<usize>,
    /// Factors of what was added to the first layer: rows x units.
    first: Vec<f32>,
    second: Vec<f32>,
    second_bias: Vec<f32>,
    last: Vec<f32>,
    last_bias: Vec<f32>,
}

impl<'a> Classifier<'a> {
    /// Fits the last layer for other classes, then trains `linears`, as long as cross-validation
    /// says that it helps.
    pub(super) fn fit(
        linears: &'a [Layer<'a>],
        lessons: &'a Lessons,
        progress: &mut dyn Progress,
    ) -> Result<Self, AdaptError> {
        progress.count(((FOLDS + 1) * STEPS) as u64);
        progress.now("cross-validation");
        let desk = Desk::new(linears, lessons);
        let folds = folds(&lessons.labels, lessons.classes);
        let rows = |wanted: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..desk.rows).filter(|row| wanted(folds[row / lessons.views])).collect()
        };
        let parts: Vec<(Vec<usize>, Vec<usize>)> = (0..FOLDS)
            .map(|fold| {
                let mut held = rows(&|of| of == fold);
                held.retain(|row| row % lessons.views == 0);
                (rows(&|of| of != fold), held)
            })
            .collect();
        let (ridge, sharpness) = desk.closed_form_options(&parts);

        // Surprise and the answers after 0, STEPS / LOOKS … steps.
        let mut looks = vec![(0.0, vec![false; lessons.labels.len()]); LOOKS + 1];
        for (train, held) in &parts {
            let mut state = desk.closed_form(train, ridge, sharpness);
            desk.train(&mut state, STEPS, progress, |step, state| {
                if !step.is_multiple_of(STEPS / LOOKS) {
                    return;
                }
                let (surprise, right) = &mut looks[step / (STEPS / LOOKS)];
                let logits = desk.logits(state, held);
                for (row, logits) in held.iter().zip(logits.chunks(lessons.classes)) {
                    let photo = row / lessons.views;
                    let label = lessons.labels[photo];
                    *surprise -= softmax(logits)[label].max(f64::MIN_POSITIVE).ln();
                    right[photo] = first(logits) == label;
                }
            })?;
        }
        let best = (0..looks.len()).min_by(|a, b| looks[*a].0.total_cmp(&looks[*b].0));
        let best = best.expect("there are some");
        if !looks[best].0.is_finite() {
            return Err(AdaptError::Fit("its answers are no numbers".to_owned()));
        }
        progress.now("all photos");
        let mut state = desk.closed_form(&rows(&|_| true), ridge, sharpness);
        desk.train(&mut state, best * (STEPS / LOOKS), progress, |_, _| {})?;
        let linears = desk.layers(&state);
        Ok(Self { linears, right: looks.swap_remove(best).1 })
    }
}

/// The part that each photo belongs to. Neighbours are in the same one, as they often show the same
/// thing.
fn folds(labels: &[usize], classes: usize) -> Vec<usize> {
    let mut folds = vec![0; labels.len()];
    for class in 0..classes {
        let photos: Vec<usize> = (0..labels.len()).filter(|&at| labels[at] == class).collect();
        for (at, photo) in photos.iter().enumerate() {
            folds[*photo] = at * FOLDS / photos.len();
        }
    }
    folds
}

impl<'a> Desk<'a> {
    fn new(linears: &'a [Layer<'a>], lessons: &'a Lessons) -> Self {
        let rows = lessons.labels.len() * lessons.views;
        let features = &lessons.features;
        let mut inputs = times_transposed(features, rows, features, rows);
        inputs.iter_mut().for_each(|product| *product += 1.0);
        let before = linear(&linears[0], features, rows);
        let hidden = relu(&linear(&linears[1], &relu(&before), rows));
        let mut products = times_transposed(&hidden, rows, &hidden, rows);
        let constant = (0..rows).map(|i| products[i * rows + i]).sum::<f32>() / rows as f32;
        let constant = constant.max(f32::MIN_POSITIVE);
        products.iter_mut().for_each(|product| *product += constant);
        Self { linears, lessons, rows, inputs, before, hidden, products, constant }
    }

    fn label(&self, row: usize) -> usize {
        self.lessons.labels[row / self.lessons.views]
    }

    /// The ridge, and what its answers are to be multiplied by, that surprise least.
    fn closed_form_options(&self, parts: &[(Vec<usize>, Vec<usize>)]) -> (f64, f64) {
        let mut best = (f64::INFINITY, (RIDGES[0], SHARPNESSES[0]));
        for ridge in RIDGES {
            let mut surprises = [0.0; SHARPNESSES.len()];
            for (train, held) in parts {
                let factors = self.factors(train, ridge);
                let answers = times(
                    &gather(&self.products, self.rows, held, train),
                    held.len(),
                    &factors,
                    self.lessons.classes,
                );
                for (row, answers) in held.iter().zip(answers.chunks(self.lessons.classes)) {
                    for (surprise, sharpness) in surprises.iter_mut().zip(SHARPNESSES) {
                        let logits: Vec<f32> =
                            answers.iter().map(|answer| answer * sharpness as f32).collect();
                        *surprise -= softmax(&logits)[self.label(*row)].max(f64::MIN_POSITIVE).ln();
                    }
                }
            }
            for (surprise, sharpness) in surprises.into_iter().zip(SHARPNESSES) {
                if surprise < best.0 {
                    best = (surprise, (ridge, sharpness));
                }
            }
        }
        best.1
    }

    /// Rows x classes: how much of each row's hidden units each class's weights are.
    fn factors(&self, train: &[usize], ridge: f64) -> Vec<f32> {
        let classes = self.lessons.classes;
        let mut wanted = vec![-1.0 / classes as f32; train.len() * classes];
        for (wanted, row) in wanted.chunks_mut(classes).zip(train) {
            wanted[self.label(*row)] += 1.0;
        }
        let products = gather(&self.products, self.rows, train, train);
        solve(&products, ridge * f64::from(self.constant), &wanted, classes)
    }

    fn closed_form(&self, train: &[usize], ridge: f64, sharpness: f64) -> State {
        let (units, classes) = (self.linears[1].outputs(), self.lessons.classes);
        let mut factors = self.factors(train, ridge);
        factors.iter_mut().for_each(|factor| *factor *= sharpness as f32);
        let hidden = pick(&self.hidden, units, train);
        let sum = |class: usize| factors.iter().skip(class).step_by(classes).sum::<f32>();
        State {
            rows: train.to_owned(),
            first: vec![0.0; train.len() * self.linears[0].outputs()],
            second: self.linears[1].weight.values().into_owned(),
            second_bias: self.linears[1].bias.values().into_owned(),
            last: transposed_times(&factors, classes, &hidden, units),
            last_bias: (0..classes).map(|class| self.constant * sum(class)).collect(),
        }
    }

    /// What the first layer gives, and what follows: the sums of each layer. `products` are the
    /// inner products of these rows' inputs with those of the rows that are learned from.
    fn forward(&self, state: &State, rows: &[usize], products: &[f32]) -> [Vec<f32>; 3] {
        let units = [0, 1].map(|layer| self.linears[layer].outputs());
        let mut one = times(products, rows.len(), &state.first, units[0]);
        let before = pick(&self.before, units[0], rows);
        one.iter_mut().zip(before).for_each(|(sum, before)| *sum += before);
        let two = affine(&state.second, &state.second_bias, &relu(&one), rows.len());
        let three = affine(&state.last, &state.last_bias, &relu(&two), rows.len());
        [one, two, three]
    }

    fn logits(&self, state: &State, rows: &[usize]) -> Vec<f32> {
        let products = gather(&self.inputs, self.rows, rows, &state.rows);
        let [_, _, logits] = self.forward(state, rows, &products);
        logits
    }

    /// Gradient descent on the cross-entropy, all rows at a time; the first of [`STEPS`] steps, if
    /// there are fewer. `look` is shown the classifier before the first step and after each.
    fn train(
        &self,
        state: &mut State,
        steps: usize,
        progress: &mut dyn Progress,
        mut look: impl FnMut(usize, &State),
    ) -> Result<(), AdaptError> {
        look(0, state);
        let (rows, classes) = (state.rows.clone(), self.lessons.classes);
        let products = gather(&self.inputs, self.rows, &rows, &rows);
        let units = [0, 1].map(|layer| self.linears[layer].outputs());
        let sizes =
            [norm(&self.linears[0].weight.values()), norm(&state.second), norm(&state.last)];
        let mut momentum = [
            vec![0.0; state.first.len()],
            vec![0.0; state.second.len()],
            vec![0.0; state.last.len()],
        ];
        for step in 0..steps {
            let [one, two, logits] = self.forward(state, &rows, &products);
            let mut three = Vec::with_capacity(logits.len());
            for (row, logits) in rows.iter().zip(logits.chunks(classes)) {
                let label = self.label(*row);
                let from = three.len();
                three.extend(softmax(logits).into_iter().map(|probability| probability as f32));
                three[from + label] -= 1.0;
            }
            let mut back = times(&three, rows.len(), &state.last, units[1]);
            cut(&mut back, &two);
            let mut deep = times(&back, rows.len(), &state.second, units[0]);
            cut(&mut deep, &one);

            // The norm of deep^T inputs, from inner products of the inputs.
            let alike = times_transposed(&deep, rows.len(), &deep, rows.len());
            let square: f64 =
                alike.iter().zip(&products).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let last = transposed_times(&three, classes, &relu(&two), units[1]);
            let second = transposed_times(&back, units[1], &relu(&one), units[0]);
            let norms = [square.max(0.0).sqrt() as f32, norm(&second), norm(&last)];
            let norms = norms.map(|norm| norm.max(f32::MIN_POSITIVE));

            let rate = RATE * (1.0 - step as f32 / STEPS as f32);
            let weights = [&mut state.first, &mut state.second, &mut state.last];
            let gradients = [&deep, &second, &last];
            for (layer, weights) in weights.into_iter().enumerate() {
                let pace = (1.0 - MOMENTUM) / norms[layer];
                let numbers = weights.iter_mut().zip(&mut momentum[layer]).zip(gradients[layer]);
                for ((weight, momentum), gradient) in numbers {
                    *momentum = MOMENTUM * *momentum + pace * gradient;
                    *weight -= rate * sizes[layer] * *momentum;
                }
            }
            let biases = [(&mut state.second_bias, &back), (&mut state.last_bias, &three)];
            for (layer, (bias, gradients)) in biases.into_iter().enumerate() {
                let (pace, width) = (rate * sizes[layer + 1] / norms[layer + 1], bias.len());
                for (at, bias) in bias.iter_mut().enumerate() {
                    *bias -= pace * gradients.iter().skip(at).step_by(width).sum::<f32>();
                }
            }
            progress.advance(1)?;
            look(step + 1, state);
        }
        Ok(())
    }

    /// The three layers, written out.
    fn layers(&self, state: &State) -> Vec<Layer<'a>> {
        let [first, second, last] = self.linears else { unreachable!("three linear layers") };
        let (units, columns) = (first.outputs(), first.weight.shape()[1]);
        let features = pick(&self.lessons.features, columns, &state.rows);
        let mut weight = transposed_times(&state.first, units, &features, columns);
        weight.iter_mut().zip(first.weight.values().iter()).for_each(|(sum, own)| *sum += own);
        let added = |unit: usize| state.first.iter().skip(unit).step_by(units).sum::<f32>();
        let mut bias = first.bias.values().into_owned();
        bias.iter_mut().enumerate().for_each(|(at, bias)| *bias += added(at));
        let layer = |before: &Layer<'_>, weight: Vec<f32>, bias: Vec<f32>| Layer {
            name: before.name.clone(),
            weight: Tensor::new(vec![bias.len(), weight.len() / bias.len()], weight),
            bias: Tensor::new(vec![bias.len()], bias),
        };
        vec![
            layer(first, weight, bias),
            layer(second, state.second.clone(), state.second_bias.clone()),
            layer(last, state.last.clone(), state.last_bias.clone()),
        ]
    }
}

fn relu(sums: &[f32]) -> Vec<f32> {
    sums.iter().map(|sum| sum.max(0.0)).collect()
}

/// Gradients where a ReLU let something through.
fn cut(gradients: &mut [f32], sums: &[f32]) {
    for (gradient, sum) in gradients.iter_mut().zip(sums) {
        if *sum <= 0.0 {
            *gradient = 0.0;
        }
    }
}

fn norm(values: &[f32]) -> f32 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32
}

/// Some rows of a matrix of so many columns.
fn pick(matrix: &[f32], columns: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|row| matrix[row * columns..][..columns].iter().copied()).collect()
}

/// Some rows and columns of a square matrix.
fn gather(matrix: &[f32], size: usize, rows: &[usize], columns: &[usize]) -> Vec<f32> {
    rows.iter()
        .flat_map(|row| columns.iter().map(move |column| matrix[row * size + column]))
        .collect()
}

//! Which variant classifies the next frame: durations in, choice out. No clock, nothing outside.
//!
//! A variant takes `compute x slowdown + memory x memory slowdown`. The two times are its profile,
//! taken when nothing disturbed; the slowdowns are the machine's, the same for all variants. A Kalman
//! filter estimates them, and a small correction of each profile, from the latency of whatever variant
//! ran: so a throttled clock or a busy neighbour is seen for all variants at once (after ALERT, Wan et
//! al., USENIX ATC 2020, where one slowdown stands for all work). What is estimated has a variance,
//! which gives each variant its probability of being in time. The choice is the largest accuracy x
//! probability among the variants that are hardly less often in time than the surest one.
//!
//! A latency far from the estimate is a spike, or the first after a change. The next frame tells;
//! until then both are believed, in the proportion in which they have turned up before.

use std::time::Duration;

/// What is known of a variant before it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Time that scales with the speed of the cores, undisturbed.
    pub compute: Duration,
    /// Time that scales with the speed of memory, undisturbed.
    pub memory: Duration,
    /// Share of photos that it gets right, 0..1.
    pub accuracy: f64,
}

/// A variant to run, and what is expected of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Index of the variant's profile.
    pub variant: usize,
    /// How long it should take.
    pub expected: Duration,
    /// Probability that it is in time, 0..1.
    pub in_time: f64,
    /// The same if this frame is no spike.
    pub usually: f64,
}

/// Picks variants, and learns from how long they took.
#[derive(Clone, Debug)]
pub struct Selector {
    variants: Vec<Known>,
    miss_rate: f64,
    belief: Belief,
    suspicion: Option<Suspicion>,
    spikes: Spikes,
    /// Variance of latencies that nothing explains, as a share of the squared latency.
    noise: f64,
    last: Option<usize>,
}

/// A profile in seconds.
#[derive(Clone, Copy, Debug)]
struct Known {
    compute: f64,
    memory: f64,
    accuracy: f64,
}

/// What may hold since a frame that took other than expected.
#[derive(Clone, Debug)]
struct Suspicion {
    /// One belief for each thing that may have changed, as long as it explains what came after.
    beliefs: Vec<Belief>,
    /// How many times the expected latency the frame took.
    ratio: f64,
}

/// Standard deviations beyond which a latency is no noise.
const SURPRISE: f64 = 3.5;

/// A belief under which a latency is this many times less likely than under another is given up.
const EVIDENCE: f64 = 20.0;

/// Unexplained deviation of latencies, as a share: at first, at the least, at the most.
const NOISE: [f64; 3] = [0.03, 0.01, 0.2];

/// How much a frame tells about the noise.
const NOISE_GAIN: f64 = 0.03;

/// The share of effective accuracy that another variant must promise more.
const WORTH: f64 = 0.002;

/// The share of the tolerated misses that is left to a variant which did not run last.
const CAUTION: f64 = 0.5;

/// Probability of being in time below which no variant is worth a hope.
const HOPELESS: f64 = 0.01;

/// The least time of anything, in seconds.
const INSTANT: f64 = 1e-6;

impl Selector {
    /// A selector among variants with these profiles. Of the frames that could be in time it lets
    /// the share `miss_rate` be late, if that pays. Spikes, which nothing foretells, do not count in
    /// that share, but in what pays.
    ///
    /// # Panics
    /// When there is no profile.
    pub fn new(profiles: &[Profile], miss_rate: f64) -> Self {
        assert!(!profiles.is_empty(), "a variant to choose");
        let known = |profile: &Profile| Known {
            compute: profile.compute.as_secs_f64().max(INSTANT),
            memory: profile.memory.as_secs_f64(),
            accuracy: profile.accuracy,
        };
        Self {
            variants: profiles.iter().map(known).collect(),
            miss_rate,
            belief: Belief::new(profiles.len()),
            suspicion: None,
            spikes: Spikes::new(),
            noise: NOISE[0].powi(2),
            last: None,
        }
    }

    /// A selector among other profiles that goes on from what this one has learned: of the machine all of
    /// it, and of each variant what was known of `before[variant]`, its index until now.
    ///
    /// # Panics
    /// When there is no profile, or not one `before` for each.
    pub fn renewed(&self, profiles: &[Profile], miss_rate: f64, before: &[Option<usize>]) -> Self {
        assert_eq!(profiles.len(), before.len(), "what each was before");
        let last = self.last.and_then(|last| before.iter().position(|&it| it == Some(last)));
        Self {
            belief: self.belief.renewed(before),
            spikes: self.spikes.clone(),
            noise: self.noise,
            last,
            ..Self::new(profiles, miss_rate)
        }
    }

    /// The variant, of those that `may` run, for a frame that should be answered within `left`.
    /// Nothing if none may.
    pub fn pick(&self, left: Duration, may: impl Fn(usize) -> bool) -> Option<Choice> {
        let able = (0..self.variants.len()).filter(|&variant| may(variant));
        let choices: Vec<Choice> = able.map(|variant| self.expect(variant, left)).collect();
        let surest = choices.iter().map(|choice| choice.usually).fold(0.0, f64::max);
        let slower = |a: &&Choice, b: &&Choice| a.expected.cmp(&b.expected);
        if surest < HOPELESS {
            return choices.iter().min_by(slower).copied();
        }
        let worth = |choice: &Choice| {
            let (bonus, share) = match self.last == Some(choice.variant) {
                true => (1.0 + WORTH, 1.0),
                false => (1.0, CAUTION),
            };
            let tolerable = choice.usually >= surest * (1.0 - share * self.miss_rate);
            let effective = self.variants[choice.variant].accuracy * choice.in_time;
            if tolerable { bonus * effective } else { -1.0 }
        };
        let better = |a: &&Choice, b: &&Choice| worth(a).total_cmp(&worth(b)).then(slower(b, a));
        choices.iter().max_by(better).copied()
    }

    /// What to expect of `variant` for a frame that should be answered within `left`.
    pub fn expect(&self, variant: usize, left: Duration) -> Choice {
        let left = left.as_secs_f64();
        let chances = |belief: &Belief| {
            let (mean, variance) = belief.expect(variant, self.variants[variant]);
            let deviation = (variance + self.noise * mean.powi(2)).sqrt();
            (mean, normal((left - mean) / deviation), self.spikes.in_time(mean, deviation, left))
        };
        let (mean, mut usually, mut in_time) = chances(&self.belief);
        if let Some(suspicion) = &self.suspicion {
            let (now, in_time_now) = (usually, in_time);
            let doubt = self.spikes.doubt() / suspicion.beliefs.len() as f64;
            for belief in &suspicion.beliefs {
                let (_, usually_then, in_time_then) = chances(belief);
                usually += doubt * (usually_then - now);
                in_time += doubt * (in_time_then - in_time_now);
            }
        }
        Choice { variant, expected: Duration::from_secs_f64(mean), in_time, usually }
    }

    /// Learns that `variant` ran and took this long.
    pub fn observe(&mut self, variant: usize, took: Duration) {
        self.last = Some(variant);
        let (known, took) = (self.variants[variant], took.as_secs_f64());
        self.belief.wander();
        let usual = self.belief.latency(variant, known);
        let surprise = usual.surprise(took, self.noise);
        if let Some(mut suspicion) = self.suspicion.take() {
            let noise = self.noise;
            let mut best = (usual.likelihood(took, noise), None);
            let mut explained = Vec::new();
            for mut belief in suspicion.beliefs {
                belief.wander();
                let latency = belief.latency(variant, known);
                let likelihood = latency.likelihood(took, noise);
                let fits = latency.surprise(took, noise) < SURPRISE;
                belief.learn(&latency, took, noise);
                if fits && likelihood > best.0 {
                    best = (likelihood, Some(explained.len()));
                }
                if fits {
                    explained.push((likelihood, belief));
                }
            }
            match best {
                (most, Some(at)) if most > EVIDENCE * usual.likelihood(took, noise) => {
                    self.belief = explained.swap_remove(at).1;
                    self.spikes.change();
                    return;
                }
                (most, _) => {
                    explained.retain(|(likelihood, _)| EVIDENCE * likelihood > most);
                    suspicion.beliefs = explained.into_iter().map(|(_, belief)| belief).collect();
                }
            }
            if suspicion.beliefs.is_empty() {
                self.spikes.add(suspicion.ratio);
            } else {
                self.suspicion = Some(suspicion);
            }
        }
        self.spikes.pass();
        let off = took - usual.mean;
        if surprise < SURPRISE {
            self.belief.learn(&usual, took, self.noise);
            let unexplained = (off.powi(2) - usual.variance).max(0.0) / usual.mean.powi(2);
            let [_, least, most] = NOISE;
            self.noise += NOISE_GAIN * (unexplained - self.noise);
            self.noise = self.noise.clamp(least.powi(2), most.powi(2));
        } else {
            let mut beliefs = self.belief.changed(known, off / usual.mean);
            for belief in &mut beliefs {
                let latency = belief.latency(variant, known);
                belief.learn(&latency, took, self.noise);
            }
            self.suspicion = Some(Suspicion { beliefs, ratio: took / usual.mean });
        }
    }

    /// How many times slower than undisturbed computing and memory are.
    pub fn slowdown(&self) -> [f64; 2] {
        [self.belief.state[0], self.belief.state[1]]
    }
}

/// A Kalman filter. Its state is the slowdown of computing, that of memory, and for each variant by
/// which share its profile is too short.
#[derive(Clone, Debug)]
struct Belief {
    state: Vec<f64>,
    /// Row after row.
    covariance: Vec<f64>,
    /// How much more or less than usual the slowdowns wander.
    pace: f64,
    /// By how many standard deviations the last latency was off.
    last: f64,
}

/// A latency that is expected, in seconds.
#[derive(Clone, Debug)]
struct Latency {
    mean: f64,
    /// Of the mean, without the noise of a single frame.
    variance: f64,
    /// Covariance of the latency with each entry of the state.
    shared: Vec<f64>,
}

/// Standard deviations of the slowdowns and of corrections at first …
const AT_FIRST: [f64; 3] = [0.1, 0.1, 0.03];

/// … and of what each frame adds to them.
const WANDER: [f64; 3] = [0.012, 0.008, 0.0005];

/// How much a frame tells about the pace, which grows while estimates err on one side and falls while
/// they err on either; and the least and most of it.
const PACE_GAIN: f64 = 0.05;
const PACE: (f64, f64) = (0.1, 3.0);

/// The share of its slowdown that memory is believed to lose with each frame, if nothing tells. A
/// variant that hardly uses memory tells nothing, and those that do would never be tried again.
const RECOVERY: f64 = 0.005;

/// Slowdowns of computing or memory alone that are believed.
const PLAUSIBLE: (f64, f64) = (0.5, 5.0);

/// The least and most slowdown, and the largest correction.
const SLOWDOWN: (f64, f64) = (0.2, 1000.0);
const CORRECTION: f64 = 0.5;

impl Belief {
    fn new(variants: usize) -> Self {
        let size = 2 + variants;
        let mut state = vec![0.0; size];
        state[..2].fill(1.0);
        let mut belief = Self { state, covariance: vec![0.0; size * size], pace: 1.0, last: 0.0 };
        belief.widen(AT_FIRST);
        belief
    }

    /// The same belief about the slowdowns, and about the variants that each were `before`.
    fn renewed(&self, before: &[Option<usize>]) -> Self {
        let (size, old_size) = (2 + before.len(), self.state.len());
        let old = |at: usize| match at {
            0 | 1 => Some(at),
            _ => before[at - 2].map(|variant| 2 + variant),
        };
        let mut belief = Self { pace: self.pace, last: self.last, ..Self::new(before.len()) };
        for row in 0..size {
            let Some(from) = old(row) else { continue };
            belief.state[row] = self.state[from];
            for column in 0..size {
                if let Some(to) = old(column) {
                    belief.covariance[row * size + column] = self.covariance[from * old_size + to];
                }
            }
        }
        belief
    }

    /// Adds independent deviations to the slowdowns and corrections.
    fn widen(&mut self, by: [f64; 3]) {
        let size = self.state.len();
        for at in 0..size {
            self.covariance[at * size + at] += by[at.min(2)].powi(2);
        }
    }

    /// Goes on from one frame to the next.
    fn wander(&mut self) {
        let size = self.state.len();
        self.state[1] += RECOVERY * (1.0 - self.state[1]);
        for at in 0..size {
            self.covariance[size + at] *= 1.0 - RECOVERY;
            self.covariance[at * size + 1] *= 1.0 - RECOVERY;
        }
        let [compute, memory, correction] = WANDER;
        self.widen([self.pace * compute, self.pace * memory, correction]);
    }

    /// What may have changed when a variant took other than expected by that share: both slowdowns
    /// alike, or one of them if that makes a plausible one.
    fn changed(&self, known: Known, share: f64) -> Vec<Self> {
        let size = self.state.len();
        let [compute, memory] = [known.compute * self.state[0], known.memory * self.state[1]];
        let off = share * (compute + memory);
        let alone = |time: f64, slowdown: f64| {
            let change = off / time;
            let plausible = PLAUSIBLE.0..PLAUSIBLE.1;
            (time > 0.0 && plausible.contains(&(slowdown * (1.0 + change)))).then_some(change)
        };
        let causes = [
            Some([share, share]),
            alone(compute, self.state[0]).map(|change| [change, 0.0]),
            alone(memory, self.state[1]).map(|change| [0.0, change]),
        ];
        let belief = |cause: [f64; 2]| {
            let change = [cause[0] * self.state[0], cause[1] * self.state[1]];
            let mut belief = self.clone();
            for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                belief.covariance[row * size + column] += change[row] * change[column];
            }
            belief
        };
        causes.into_iter().flatten().map(belief).collect()
    }

    /// Mean and variance of a latency, the variance as if the correction of its profile were exact:
    /// a variant that is tried and turns out slower costs one frame, one that is never tried costs
    /// every frame.
    fn expect(&self, variant: usize, known: Known) -> (f64, f64) {
        let Known { compute, memory, .. } = known;
        let at = |row: usize, column: usize| self.covariance[row * self.state.len() + column];
        let factor = 1.0 + self.state[2 + variant];
        let mean = compute * self.state[0] + memory * self.state[1];
        let variance = compute.powi(2) * at(0, 0)
            + 2.0 * compute * memory * at(0, 1)
            + memory.powi(2) * at(1, 1);
        (factor * mean, factor.powi(2) * variance.max(0.0))
    }

    /// The same with all that learning from it takes.
    fn latency(&self, variant: usize, known: Known) -> Latency {
        let size = self.state.len();
        let base = known.compute * self.state[0] + known.memory * self.state[1];
        let weights = [(0, known.compute), (1, known.memory), (2 + variant, base)];
        let shared = |row: usize| -> f64 {
            weights.iter().map(|&(at, weight)| weight * self.covariance[row * size + at]).sum()
        };
        let shared: Vec<f64> = (0..size).map(shared).collect();
        let variance: f64 = weights.iter().map(|&(at, weight)| weight * shared[at]).sum();
        let mean = base * (1.0 + self.state[2 + variant]);
        Latency { mean, variance: variance.max(0.0), shared }
    }

    /// The update of a Kalman filter.
    fn learn(&mut self, expected: &Latency, took: f64, noise: f64) {
        let size = self.state.len();
        let variance = expected.variance + noise * expected.mean.powi(2);
        let off = took - expected.mean;
        for row in 0..size {
            let gain = expected.shared[row] / variance;
            self.state[row] += gain * off;
            for column in 0..size {
                self.covariance[row * size + column] -= gain * expected.shared[column];
            }
        }
        let (slowdowns, corrections) = self.state.split_at_mut(2);
        slowdowns.iter_mut().for_each(|it| *it = it.clamp(SLOWDOWN.0, SLOWDOWN.1));
        corrections.iter_mut().for_each(|it| *it = it.clamp(-CORRECTION, CORRECTION));

        let off = off / variance.sqrt();
        self.pace *= (PACE_GAIN * (off * self.last).clamp(-1.0, 1.0)).exp();
        self.pace = self.pace.clamp(PACE.0, PACE.1);
        self.last = off;
    }
}

impl Latency {
    /// Standard deviation of a frame.
    fn deviation(&self, noise: f64) -> f64 {
        (self.variance + noise * self.mean.powi(2)).sqrt()
    }

    /// How far from what was expected, in standard deviations.
    fn surprise(&self, took: f64, noise: f64) -> f64 {
        (took - self.mean).abs() / self.deviation(noise)
    }

    /// Density of the normal distribution, but for a factor that is always the same.
    fn likelihood(&self, took: f64, noise: f64) -> f64 {
        (-0.5 * self.surprise(took, noise).powi(2)).exp() / self.deviation(noise)
    }
}

/// Frames that took far longer than those before and after them.
#[derive(Clone, Debug)]
struct Spikes {
    /// The latest ones, in multiples of what was expected.
    ratios: [f64; 8],
    /// How many there were in all.
    count: usize,
    /// Share of the frames, the latest ones counting most.
    rate: f64,
    /// Surprises that turned out to be spikes, and changes that lasted.
    lone: f64,
    changes: f64,
    /// Frames since the latest change.
    quiet: u32,
    /// Whether it may still turn out to be several spikes in a row.
    young: bool,
}

/// Frames after which a change was none of several spikes in a row.
const LASTING: u32 = 5;

/// How much a frame counts in the rate of spikes.
const SPIKE_GAIN: f64 = 0.003;

impl Spikes {
    fn new() -> Self {
        Self {
            ratios: [0.0; 8],
            count: 0,
            rate: 0.0,
            lone: 0.0,
            changes: 0.0,
            quiet: u32::MAX,
            young: false,
        }
    }

    /// What was off was off alone.
    fn add(&mut self, ratio: f64) {
        self.lone += 1.0;
        if ratio > 1.0 {
            self.ratios[self.count % self.ratios.len()] = ratio;
            self.count += 1;
            self.rate += SPIKE_GAIN;
        }
    }

    /// What was off stays so, for now.
    fn change(&mut self) {
        // Another change so soon is the way back.
        if self.quiet < 2 * LASTING {
            self.lone += 1.0;
            self.young = false;
        } else {
            self.young = true;
        }
        self.quiet = 0;
    }

    /// A frame has passed.
    fn pass(&mut self) {
        self.rate *= 1.0 - SPIKE_GAIN;
        self.quiet = self.quiet.saturating_add(1);
        if self.young && self.quiet == LASTING {
            self.changes += 1.0;
            self.young = false;
        }
    }

    /// Probability that a surprise is a change.
    fn doubt(&self) -> f64 {
        (self.changes + 0.5) / (self.changes + self.lone + 2.0)
    }

    /// Probability that a normally distributed latency is within `left`, or a multiple of it if the
    /// frame is a spike.
    fn in_time(&self, mean: f64, deviation: f64, left: f64) -> f64 {
        let within = |ratio: f64| normal((left - ratio * mean) / (ratio * deviation));
        let usually = within(1.0);
        let known = self.count.min(self.ratios.len());
        if known == 0 {
            return usually;
        }
        let spike = self.ratios[..known].iter().map(|&ratio| within(ratio)).sum::<f64>();
        usually + self.rate * (spike / known as f64 - usually)
    }
}

/// The normal distribution's share below `deviations`, to 0.00014 (Bowling et al. 2009).
fn normal(deviations: f64) -> f64 {
    if deviations.abs() > 5.0 {
        return f64::from(deviations > 0.0);
    }
    1.0 / (1.0 + (-0.07056 * deviations.powi(3) - 1.5976 * deviations).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: f64) -> Duration {
        Duration::from_secs_f64(milliseconds / 1e3)
    }

    fn selector() -> Selector {
        let profile = |compute, memory, accuracy| Profile {
            compute: ms(compute),
            memory: ms(memory),
            accuracy,
        };
        Selector::new(&[profile(300.0, 100.0, 0.8), profile(100.0, 20.0, 0.7)], 0.05)
    }

    /// Lets the selector choose for `frames` with a machine that slow; how often each variant ran.
    fn drive(
        selector: &mut Selector,
        frames: usize,
        budget: Duration,
        [compute, memory]: [f64; 2],
    ) -> [usize; 2] {
        let mut ran = [0; 2];
        for _ in 0..frames {
            let variant = selector.pick(budget, |_| true).unwrap().variant;
            let known = selector.variants[variant];
            let took = known.compute * compute + known.memory * memory;
            selector.observe(variant, Duration::from_secs_f64(took));
            ran[variant] += 1;
        }
        ran
    }

    #[test]
    fn the_most_accurate_variant_that_fits() {
        for (budget, expected) in [(500.0, 0), (200.0, 1), (1.0, 1), (f64::MAX, 0)] {
            let budget = if budget == f64::MAX { Duration::MAX } else { ms(budget) };
            let choice = selector().pick(budget, |_| true).unwrap();
            assert_eq!(choice.variant, expected, "{budget:?}");
        }
        let only = |variant: usize| selector().pick(ms(500.0), |other| other == variant);
        assert_eq!(only(1).unwrap().variant, 1);
        assert_eq!(only(2), None);
    }

    #[test]
    fn a_slow_machine_is_seen_for_all_variants_and_so_is_its_recovery() {
        let mut selector = selector();
        assert_eq!(drive(&mut selector, 30, ms(500.0), [1.0, 1.0]), [30, 0]);
        let [accurate, fast] = drive(&mut selector, 30, ms(500.0), [2.0, 2.0]);
        assert!(accurate <= 3, "{accurate} frames too late");
        assert!(fast >= 27);
        let [accurate, _] = drive(&mut selector, 30, ms(500.0), [1.0, 1.0]);
        assert!(accurate >= 27, "{accurate} frames by the accurate variant again");
    }

    #[test]
    fn busy_memory_is_no_busy_core() {
        let profile =
            |compute, memory| Profile { compute: ms(compute), memory: ms(memory), accuracy: 0.8 };
        let mut selector = Selector::new(&[profile(100.0, 300.0), profile(100.0, 5.0)], 0.05);
        for _ in 0..20 {
            selector.observe(0, ms(100.0 + 3.0 * 300.0));
            selector.observe(1, ms(100.0 + 3.0 * 5.0));
        }
        let [compute, memory] = selector.slowdown();
        assert!((compute - 1.0).abs() < 0.1 && (memory - 3.0).abs() < 0.3, "{compute} {memory}");
    }

    #[test]
    fn what_memory_lost_is_tried_again_although_nothing_tells() {
        let profile =
            |compute, memory, accuracy| Profile { compute: ms(compute), memory, accuracy };
        let profiles = [profile(100.0, ms(300.0), 0.8), profile(100.0, Duration::ZERO, 0.7)];
        let mut selector = Selector::new(&profiles, 0.05);
        let [accurate, _] = drive(&mut selector, 20, ms(450.0), [1.0, 4.0]);
        assert!(accurate <= 3);
        let [accurate, fast] = drive(&mut selector, 1500, ms(450.0), [1.0, 1.0]);
        assert!(accurate > fast, "{accurate} by the accurate variant, {fast} by the other");
    }

    #[test]
    fn a_lone_spike_changes_nothing_for_long() {
        let mut selector = selector();
        drive(&mut selector, 30, ms(500.0), [1.0, 1.0]);
        selector.observe(0, ms(4000.0));
        let [accurate, fast] = drive(&mut selector, 20, ms(500.0), [1.0, 1.0]);
        assert!(fast <= 1, "{accurate} {fast}");
        assert!((selector.slowdown()[0] - 1.0).abs() < 0.1);
    }

    #[test]
    fn a_wrong_profile_is_corrected() {
        let mut selector = selector();
        for _ in 0..200 {
            // A tenth slower than its profile says; the other one is as it says.
            selector.observe(0, ms(440.0));
            selector.observe(1, ms(120.0));
        }
        let [first, second] = [0, 1].map(|variant| selector.expect(variant, ms(1.0)).expected);
        assert!((first.as_secs_f64() - 0.44).abs() < 0.01, "{first:?}");
        assert!((second.as_secs_f64() - 0.12).abs() < 0.01, "{second:?}");
    }

    #[test]
    fn what_was_learned_outlives_a_change_of_the_variants() {
        let mut selector = selector();
        drive(&mut selector, 30, ms(500.0), [2.0, 2.0]);
        let profile =
            |compute, accuracy| Profile { compute: ms(compute), memory: Duration::ZERO, accuracy };
        let known = selector.variants.iter().map(|known| Profile {
            compute: Duration::from_secs_f64(known.compute),
            memory: Duration::from_secs_f64(known.memory),
            accuracy: known.accuracy,
        });
        // One more, in front, and the others in another order.
        let profiles: Vec<Profile> = [profile(50.0, 0.6)].into_iter().chain(known.rev()).collect();
        let renewed = selector.renewed(&profiles, 0.1, &[None, Some(1), Some(0)]);
        let expected = |selector: &Selector, variant| selector.expect(variant, ms(500.0));
        assert_eq!(renewed.slowdown(), selector.slowdown());
        for (now, before) in [(1, 1), (2, 0)] {
            let [now, before] = [expected(&renewed, now), expected(&selector, before)];
            assert_eq!((now.expected, now.in_time), (before.expected, before.in_time));
        }
        let new = expected(&renewed, 0).expected.as_secs_f64();
        assert!((new - 0.1).abs() < 0.01, "{new}");
        assert_eq!(renewed.last, selector.last.map(|last| 2 - last));
    }

    #[test]
    fn nothing_breaks_it() {
        let odd = [Duration::ZERO, Duration::from_nanos(1), ms(1.0), ms(1e9), Duration::MAX];
        let zero = Profile { compute: ms(0.0), memory: ms(0.0), accuracy: 0.0 };
        let mut selector = Selector::new(&[zero, zero], 0.0);
        for round in 0..2000usize {
            let left = odd[round * 7 % odd.len()];
            let choice = selector.pick(left, |_| true).unwrap();
            assert!((-1e-9..=1.0 + 1e-9).contains(&choice.in_time), "{choice:?}");
            selector.observe(round % 2, odd[round * round % odd.len()]);
        }
        // And it finds back.
        for _ in 0..2000 {
            selector.observe(0, ms(0.001));
        }
        assert!(selector.expect(0, ms(1.0)).expected < ms(0.01));
    }
}

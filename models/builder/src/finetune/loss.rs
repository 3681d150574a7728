//! What a student is to learn: the teacher's answers, and the labels of photos that have one.

use candle_core::{D, Result, Tensor};

/// How the student's answers are weighed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loss {
    /// What logits are divided by: the higher, the more unlikely classes count.
    pub(super) temperature: f64,
    /// Weight of the labels against that of the teacher, 1.
    pub(super) labels: f64,
}

impl Loss {
    /// Per photo: the Kullback-Leibler divergence from the teacher at the temperature, times its
    /// square so that gradients are of the same size at each (Hinton et al. 2015), plus the cross
    /// entropy with the label. `student` and `teacher` are photos x classes, `labels` too: 1 at
    /// the class of a photo, and 0 everywhere where it is not known.
    pub(super) fn of(self, student: &Tensor, teacher: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let photos = student.dim(0)? as f64;
        let Self { temperature, labels: weight } = self;
        let expected = log_softmax(&(teacher / temperature)?)?;
        let found = log_softmax(&(student / temperature)?)?;
        let divergence = (expected.exp()? * (expected - found)?)?.sum_all()?;
        let surprise = (labels * log_softmax(student)?)?.sum_all()?;
        (divergence * (temperature * temperature / photos))? - (surprise * (weight / photos))?
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let sum = shifted.exp()?.sum_keepdim(D::Minus1)?;
    shifted.broadcast_sub(&sum.log()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn value(loss: Loss, student: &[f32], teacher: &[f32], labels: &[f32]) -> (f32, Vec<f32>) {
        let row = |values: &[f32]| Tensor::from_slice(values, (1, values.len()), &Device::Cpu);
        let student = Var::from_tensor(&row(student).unwrap()).unwrap();
        let loss = loss.of(&student, &row(teacher).unwrap(), &row(labels).unwrap()).unwrap();
        let gradient = loss.backward().unwrap().remove(&student).unwrap();
        (loss.to_scalar().unwrap(), gradient.flatten_all().unwrap().to_vec1().unwrap())
    }

    #[test]
    fn is_zero_where_student_and_teacher_agree() {
        let loss = Loss { temperature: 2.0, labels: 1.0 };
        let (same, gradient) = value(loss, &[1.0, 2.0, 300.0], &[2.0, 3.0, 301.0], &[0.0; 3]);
        assert!(same.abs() < 1e-6, "{same}");
        assert!(gradient.iter().all(|value| value.abs() < 1e-6), "{gradient:?}");
    }

    #[test]
    fn is_what_its_definition_says() {
        let coin = [3f32.ln(), 0.0];
        let loss = |temperature, labels| {
            let loss = Loss { temperature, labels };
            value(loss, &coin, &[0.0, 0.0], &[0.0, 1.0])
        };
        let (divergence, gradient) = loss(1.0, 0.0);
        let expected = 0.5 * (0.5f32 / 0.75).ln() + 0.5 * (0.5f32 / 0.25).ln();
        assert!((divergence - expected).abs() < 1e-6, "{divergence}");
        assert!((gradient[0] - 0.25).abs() < 1e-6, "{gradient:?}");
        let (with_label, gradient) = loss(1.0, 2.0);
        assert!((with_label - expected - 2.0 * 4f32.ln()).abs() < 1e-6, "{with_label}");
        assert!((gradient[1] + 0.25 + 2.0 * 0.75).abs() < 1e-6, "{gradient:?}");
        let warm = 3f32.sqrt() / (1.0 + 3f32.sqrt());
        let (divergence, gradient) = loss(2.0, 0.0);
        let expected = 4.0 * 0.5 * ((0.5 / warm).ln() + (0.5 / (1.0 - warm)).ln());
        assert!((divergence - expected).abs() < 1e-6, "{divergence}");
        assert!((gradient[0] - 2.0 * (warm - 0.5)).abs() < 1e-6, "{gradient:?}");
    }
}

//! What VGG-19 looks like: 16 convolutions, 5 poolings, 3 linear layers, of any widths.
//!
//! Owns the arithmetic on shapes: names, widths, parameter and MAC counts. Holds no weights.

/// Index of each convolution among torchvision's `features`; its ReLU is the next index.
pub const CONVOLUTIONS: [usize; 16] = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34];

/// The convolutions that a 2x2 max pooling follows, after their ReLU.
pub const POOLED: [usize; 5] = [2, 7, 16, 25, 34];

/// Index of each linear layer among torchvision's `classifier`; a ReLU follows but for the last.
pub const LINEARS: [usize; 3] = [0, 3, 6];

/// Height and width that the classifier was trained for, in positions of the last feature map.
pub const POOLED_SIDE: usize = 7;

/// Input side that gives a last feature map of [`POOLED_SIDE`], in pixels.
pub const BASELINE_SIDE: usize = 224;

/// How many times smaller the last feature map's side is than the input's.
pub const REDUCTION: usize = 32;

/// Widths of one VGG-19.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Output channels of each convolution.
    pub channels: [usize; 16],
    /// Outputs of the first two linear layers.
    pub hidden: [usize; 2],
    /// Outputs of the last.
    pub classes: usize,
}

impl Topology {
    /// Channels that each convolution reads.
    pub fn convolution_inputs(&self) -> [usize; 16] {
        std::array::from_fn(|i| if i == 0 { 3 } else { self.channels[i - 1] })
    }

    /// Inputs of each linear layer when the last feature map enters the first one unpooled.
    pub fn linear_inputs(&self, input_side: usize) -> [usize; 3] {
        let positions = (input_side / REDUCTION).pow(2);
        [self.channels[15] * positions, self.hidden[0], self.hidden[1]]
    }

    /// Outputs of each linear layer.
    pub fn linear_outputs(&self) -> [usize; 3] {
        [self.hidden[0], self.hidden[1], self.classes]
    }

    /// Weights and biases.
    pub fn parameters(&self, input_side: usize) -> u64 {
        let linears = (self.linear_inputs(input_side).into_iter())
            .zip(self.linear_outputs())
            .map(|(input, output)| (input * output + output) as u64);
        self.convolution_parameters().into_iter().sum::<u64>() + linears.sum::<u64>()
    }

    /// Weights and biases of each convolution.
    pub fn convolution_parameters(&self) -> [u64; 16] {
        let inputs = self.convolution_inputs();
        std::array::from_fn(|i| (9 * inputs[i] * self.channels[i] + self.channels[i]) as u64)
    }

    /// Multiply-accumulates of each convolution: those of a direct one, padding included.
    pub fn convolution_macs(&self, input_side: usize) -> [u64; 16] {
        let mut side = input_side as u64;
        let inputs = self.convolution_inputs();
        std::array::from_fn(|i| {
            let macs = side * side * 9 * (inputs[i] * self.channels[i]) as u64;
            if POOLED.contains(&CONVOLUTIONS[i]) {
                side /= 2;
            }
            macs
        })
    }

    /// Multiply-accumulates of one inference, convolutions and linear layers.
    pub fn macs(&self, input_side: usize) -> u64 {
        let linears = (self.linear_inputs(input_side).into_iter())
            .zip(self.linear_outputs())
            .map(|(input, output)| (input * output) as u64);
        self.convolution_macs(input_side).into_iter().sum::<u64>() + linears.sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_equal_the_published_ones() {
        let vgg19 = Topology {
            channels: [
                64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512,
            ],
            hidden: [4096, 4096],
            classes: 1000,
        };
        assert_eq!(vgg19.parameters(224), 143_667_240);
        assert_eq!(vgg19.macs(224), 19_632_062_464);
        assert_eq!(vgg19.parameters(160), 93_335_592);
        assert_eq!(vgg19.linear_inputs(160)[0], 12_800);
    }
}

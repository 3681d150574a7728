//! The command line: what can be said, and its help.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use vggd::config::Precision;
use vggd_models::{fetch, plan, prune};

/// Make vggd model sets: variants of one trained VGG-19, as ordinary ONNX.
#[derive(Parser)]
#[command(
    name = "vggd-models",
    version,
    after_help = "\
A set from nothing:
  vggd-models fetch
  vggd-models import vgg19-dcbb9e9d.pth --labels imagenet-labels.txt --out models/vgg19
  vggd-models prune models/vgg19 --photos photos
  vggd-models quantize models/vgg19 --from pruned
  vggd-models evaluate models/vgg19 --photos validation
or all of it at once, from a plan: vggd-models build --help"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Fetch(FetchArguments),
    Import(ImportArguments),
    Prune(PruneArguments),
    Finetune(FinetuneArguments),
    Quantize(QuantizeArguments),
    Scale(ScaleArguments),
    Build(BuildArguments),
    Adapt(AdaptArguments),
    Evaluate(EvaluateArguments),
    #[command(hide = true)]
    Measure(MeasureArguments),
}

/// Download torchvision's VGG-19, trained on ImageNet (575 MB)
///
/// A download that was cut off or interrupted goes on where it stopped. The file's SHA-256 must
/// begin with the digits in its name, such as dcbb9e9d in vgg19-dcbb9e9d.pth. A proxy is taken from
/// HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, hosts without one from NO_PROXY.
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = FETCH_EXAMPLES)]
pub(crate) struct FetchArguments {
    /// File or folder for the weights [default: the name in the URL]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// Where to download from: a mirror, or other weights
    #[arg(long, value_name = "URL", default_value = fetch::VGG19)]
    pub(crate) url: String,

    /// Print one JSON object, {"path", "bytes", "sha256"}, instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

const FETCH_EXAMPLES: &str = "\
Examples:
  vggd-models fetch
  vggd-models fetch --out /data/vgg19-dcbb9e9d.pth --json | jq -r .path
  vggd-models fetch --url https://download.pytorch.org/models/vgg19_bn-c79401a0.pth
  HTTPS_PROXY=http://proxy:3128 vggd-models fetch

Exit codes: 0 FILE is there and right; 1 it is not, and FILE.part is what has arrived so far;
2 wrong arguments.";

/// Make a model set from trained weights: the variants that need no training
///
/// The set is a folder with manifest.toml, labels.txt, ONNX graphs and weight files. Its variants:
///
///   baseline   as it was trained: float32, 224 x 224
///   quantized  linear layers as int8, one scale per row and 64 columns
///   scaled     float32, 160 x 160; the adaptive pooling is folded into the first linear layer
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct ImportArguments {
    /// Trained weights: a safetensors file with torchvision's VGG-19 names and shapes, in
    /// float32, float16 or bfloat16
    #[arg(value_name = "FILE.safetensors")]
    pub(crate) source: PathBuf,

    /// Text file with one label per line, in the order of the classes
    #[arg(long, value_name = "LABELS.txt")]
    pub(crate) labels: PathBuf,

    /// Folder for the model set; made if it is missing
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// What the set is called [default: the name of the weights' file]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,

    /// Replace the model set that is in DIR, once the new one is complete
    #[arg(long)]
    pub(crate) force: bool,

    /// Print one JSON object per variant, one per line, instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

const EXAMPLES: &str = "\
Examples:
  vggd-models import vgg19.safetensors --labels imagenet-labels.txt --out models/vgg19
  vggd-models import birds.safetensors --labels birds.txt --out birds --name Birds --force
  vggd-models import vgg19.safetensors --labels labels.txt --out set --json | jq .bytes

Exit codes: 0 the set is in DIR; 1 it is not, and DIR is as it was; 2 wrong arguments.";

/// What commands that add a variant to a set have in common.
#[derive(Args)]
pub(crate) struct AddArguments {
    /// The model set's folder
    #[arg(value_name = "SET")]
    pub(crate) set: PathBuf,

    /// The variant to start from
    #[arg(long, value_name = "VARIANT", default_value = "baseline")]
    pub(crate) from: String,

    /// What the new variant is called [default: the old name and what was done]
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Folder with calibration photos, no labels needed
    #[arg(long, value_name = "DIR")]
    pub(crate) photos: Option<PathBuf>,

    /// How many of them to use, but for a tenth that fine-tuning is judged by; finetune uses all
    #[arg(long, value_name = "COUNT", default_value_t = plan::CALIBRATION)]
    pub(crate) calibration: usize,

    /// Replace a variant of that name
    #[arg(long)]
    pub(crate) force: bool,

    /// Threads that compute [default: one per core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,

    /// Print one JSON object per variant, one per line, instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove whole filters, and let the layers after them make up for it
///
/// With --ratio the same share of every layer from conv3_1 on goes, the filters of smallest L2 norm
/// first. With --macs or --parameters filters go wherever it hurts least, by each layer's measured
/// sensitivity, until that share of the multiply-accumulates or parameters is left. Either way every
/// layer that reads fewer channels is refitted by least squares on the calibration photos. Layers
/// keep a multiple of 16 filters, the last of 64. With --hidden the filters stay, and a classifier of
/// fewer units is trained to answer as the whole one does.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vggd-models prune models/vgg19 --photos photos
  vggd-models prune models/vgg19 --photos photos --macs 0.5 --name half
  vggd-models prune models/vgg19 --photos photos --from half --hidden 128 512 --name narrow

Exit codes: 0 the variant is in the set; 1 it is not, and the set is as it was; 2 wrong arguments.")]
pub(crate) struct PruneArguments {
    #[command(flatten)]
    pub(crate) add: AddArguments,

    #[arg(long, value_name = "SHARE", group = "target", help = format!(
        "Share of each layer's filters that goes [default: {}]", prune::RATIO
    ))]
    pub(crate) ratio: Option<f64>,

    /// Share of the multiply-accumulates that stays
    #[arg(long, value_name = "SHARE", group = "target")]
    pub(crate) macs: Option<f64>,

    /// Share of the parameters that stays
    #[arg(long, value_name = "SHARE", group = "target")]
    pub(crate) parameters: Option<f64>,

    /// Units that stay in the two hidden layers of the classifier: multiples of 64
    #[arg(long, value_names = ["FIRST", "SECOND"], num_args = 2, group = "target")]
    pub(crate) hidden: Option<Vec<usize>>,
}

/// Train a changed network towards the answers of the one it was made from
///
/// Back-propagation through all layers. Photos need no labels, which are used where there are any;
/// a tenth of the photos is held back to judge by, and calibration uses none of those. What comes out
/// is never worse on those than what went in. Interrupted, it goes on where it was when called again.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vggd-models finetune models/vgg19 --from pruned --photos photos --minutes 60

Exit codes: 0 the variant is in the set; 1 it is not, and the set is as it was; 2 wrong arguments.")]
pub(crate) struct FinetuneArguments {
    #[command(flatten)]
    pub(crate) add: AddArguments,

    /// How long to train
    #[arg(long, default_value_t = 60.0)]
    pub(crate) minutes: f64,
}

/// Store layers as int8
///
/// `linear` needs no photos: a scale per row and 64 columns, a quarter of the size. `all` makes the
/// convolutions int8 too, their inputs and outputs in ranges that the calibration photos give.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vggd-models quantize models/vgg19 --from pruned
  vggd-models quantize models/vgg19 --layers all --photos photos --name int8

Exit codes: 0 the variant is in the set; 1 it is not, and the set is as it was; 2 wrong arguments.")]
pub(crate) struct QuantizeArguments {
    #[command(flatten)]
    pub(crate) add: AddArguments,

    /// Which layers
    #[arg(long, default_value = "linear")]
    pub(crate) layers: Layers,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Layers {
    Linear,
    All,
}

/// Run a network on smaller or larger photos
///
/// Work shrinks with the area. The adaptive pooling behind the convolutions is folded into the first
/// linear layer, which loses nothing; what is lost is lost to the smaller photo.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vggd-models scale models/vgg19 --side 160
  vggd-models scale models/vgg19 --from pruned --side 192 --name pruned-192

Exit codes: 0 the variant is in the set; 1 it is not, and the set is as it was; 2 wrong arguments.")]
pub(crate) struct ScaleArguments {
    #[command(flatten)]
    pub(crate) add: AddArguments,

    /// Height and width in pixels, a multiple of 32 from 96 to 288
    #[arg(long, default_value_t = vggd_models::import::SCALED_SIDE)]
    pub(crate) side: usize,
}

/// Make a whole model set from a plan
///
/// A plan is a TOML file: the weights, the photos, and the variants, each made from one before it.
/// Steps whose inputs have not changed since the last time are not repeated, and a build that was
/// stopped goes on where it was.
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = PLAN)]
pub(crate) struct BuildArguments {
    /// The plan
    #[arg(value_name = "PLAN.toml")]
    pub(crate) plan: PathBuf,

    /// Threads that compute [default: one per core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,

    /// Print one JSON object per variant, one per line, instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

const PLAN: &str = concat!("\
A plan:
  name = \"VGG-19\"
  weights = \"vgg19-dcbb9e9d.pth\"
  labels = \"imagenet-labels.txt\"
  photos = \"photos\"       # for calibration, no labels needed
  calibration = 200       # how many of them
  out = \"models/vgg19\"

Paths are taken from the plan's folder. Without variants of its own it makes these:

", include_str!("plan/default.toml"), "
A variant may also have  prune = { macs = 0.5 },  finetune_minutes = 60,  storage = 'int8'.

Exit codes: 0 the set is in its folder; 1 it is not, and the folder is as it was; 2 wrong arguments.");

/// Judge the variants of a set: accuracy, agreement with the baseline, latency, memory
///
/// Photos with labels lie in a folder per class, named like the label, or are listed in images.csv
/// (columns file and label); without labels only agreement with the baseline is judged. The figures
/// go into the set's manifest, where vggd reads them to choose a variant.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vggd-models evaluate models/vgg19 --photos validation --picture vgg19.svg
  vggd-models evaluate models/vgg19 --photos photos --variant pruned --json | jq .agreement

Exit codes: 0 judged; 1 not, and the manifest is as it was; 2 wrong arguments.")]
pub(crate) struct EvaluateArguments {
    /// The model set's folder
    #[arg(value_name = "SET")]
    pub(crate) set: PathBuf,

    /// Folder with photos
    #[arg(long, value_name = "DIR")]
    pub(crate) photos: PathBuf,

    /// Judge this variant only; may be given more than once
    #[arg(long, value_name = "VARIANT")]
    pub(crate) variant: Vec<String>,

    /// How many photos to use [default: all]
    #[arg(long, value_name = "COUNT")]
    pub(crate) count: Option<usize>,

    /// Write a picture of accuracy against latency
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) picture: Option<PathBuf>,

    /// Leave the set's manifest as it is
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Inferences that are timed for each variant, in a process of its own; 0 for none
    #[arg(long, default_value_t = 11)]
    pub(crate) runs: u32,

    /// Threads that compute [default: one per core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,

    /// Print one JSON object per variant, one per line, instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a set for own classes, from a folder of photos for each
///
/// The convolutions stay as they are; the last layer is fitted in closed form, then all linear
/// layers are trained for a short time. A few dozen photos per class are enough. How right the new
/// classifier is, is estimated by leaving out a fifth of the photos five times; neighbours by name
/// are left out together.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vggd-models adapt photos --set models/vgg19 --out models/own
where photos/cat/, photos/dog/ and so on hold the photos, and the folders' names are the labels.

Exit codes: 0 the set is there; 1 it is not, and nothing was changed; 2 wrong arguments.")]
pub(crate) struct AdaptArguments {
    /// Folder with a folder per class
    #[arg(value_name = "FOLDER")]
    pub(crate) photos: PathBuf,

    /// The model set to start from
    #[arg(long, value_name = "SET")]
    pub(crate) set: PathBuf,

    /// The variant of it to start from
    #[arg(long, value_name = "VARIANT", default_value = "baseline")]
    pub(crate) from: String,

    /// Folder of the new model set
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// What the set is called, for people [default: the folder's name]
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Replace a model set that is already there
    #[arg(long)]
    pub(crate) force: bool,

    /// Threads that compute [default: one per core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,

    /// Print the estimate as one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

/// Times one variant, for `evaluate`, in a process that does nothing else.
#[derive(Args)]
pub(crate) struct MeasureArguments {
    #[arg(long)]
    pub(crate) models: PathBuf,
    #[arg(long)]
    pub(crate) variant: String,
    #[arg(long)]
    pub(crate) threads: usize,
    #[arg(long)]
    pub(crate) precision: Precision,
    #[arg(long)]
    pub(crate) runs: u32,
}

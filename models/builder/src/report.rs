//! What was made, on stdout: a table for people, JSON lines for programs.

use std::io::{self, Write};
use std::path::Path;

use vggd::manifest::{Manifest, Variant};

/// One line per variant, then the folder.
pub(crate) fn table(manifest: &Manifest, out: &Path) -> io::Result<()> {
    let header = ["variant", "input", "parameters", "MACs", "size"].map(str::to_owned);
    let rows: Vec<_> = [header].into_iter().chain(manifest.variants.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let [w0, w1, w2, w3, w4] = std::array::from_fn(width);
    let mut stdout = io::stdout().lock();
    for [name, input, parameters, macs, size] in &rows {
        writeln!(stdout, "{name:w0$}  {input:w1$}  {parameters:>w2$}  {macs:>w3$}  {size:>w4$}")?;
    }
    writeln!(stdout, "\n{}", out.display())
}

/// Each variant as the manifest has it.
pub(crate) fn json(manifest: &Manifest) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for variant in &manifest.variants {
        serde_json::to_writer(&mut stdout, variant)?;
        writeln!(stdout)?;
    }
    Ok(())
}

fn row(variant: &Variant) -> [String; 5] {
    [
        variant.name.clone(),
        format!("{0} x {0}", variant.side()),
        format!("{:.1} M", variant.parameters as f64 / 1e6),
        format!("{:.2} G", variant.macs as f64 / 1e9),
        format!("{:.1} MB", variant.bytes as f64 / 1e6),
    ]
}

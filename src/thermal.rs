//! How hot the board is and whether its firmware holds it back, as the system tells: files in sysfs, and where
//! the firmware is in none of them, its mailbox. Where there is neither, nothing is known, which is no error.

mod mailbox;

use std::fs;
use std::path::Path;

use serde::Serialize;

/// Thermal state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Thermal {
    /// The hottest thermal zone, in degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<f64>,
    /// What a Raspberry Pi's firmware says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Throttled>,
}

/// What holds a Raspberry Pi back at this moment (bits 0 to 3 of `get_throttled`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Throttled {
    /// The power supply gives too little.
    pub under_voltage: bool,
    /// The clock is below what it could be.
    pub frequency_capped: bool,
    /// The clock is lowered because it is hot.
    pub throttled: bool,
    /// The soft temperature limit is reached.
    pub soft_temperature_limit: bool,
}

/// Where a Raspberry Pi's kernel may show what the firmware says, in
/// `<a name that begins with the one>/<a name that ends with the other>/get_throttled`: `soc/soc:firmware`, or
/// `soc@107c000000/soc@107c000000:firmware` on newer boards.
const FIRMWARE: (&str, &str) = ("soc", "firmware");

impl Thermal {
    /// The state now.
    pub fn now() -> Self {
        let found = Self::below(Path::new("/sys"));
        let throttled = found.throttled.or_else(|| mailbox::throttled().map(Throttled::of));
        Self { throttled, ..found }
    }

    /// The same by the files below another folder than `/sys`.
    fn below(sys: &Path) -> Self {
        let zones = fs::read_dir(sys.join("class/thermal")).into_iter().flatten().flatten();
        let temperature = zones
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("thermal_zone"))
            .filter_map(|entry| fs::read_to_string(entry.path().join("temp")).ok())
            .filter_map(|text| text.trim().parse::<i64>().ok())
            .filter(|millidegrees| (-60_000..250_000).contains(millidegrees))
            .max();
        let folders = |of: &Path, fits: fn(&str) -> bool| {
            let entries = fs::read_dir(of).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(move |path| {
                path.file_name().is_some_and(|name| fits(&name.to_string_lossy()))
            })
        };
        let firmware = folders(&sys.join("devices/platform"), |name| name.starts_with(FIRMWARE.0))
            .flat_map(|soc| folders(&soc, |name| name.ends_with(FIRMWARE.1)))
            .find_map(|folder| fs::read_to_string(folder.join("get_throttled")).ok());
        Self {
            temperature_c: temperature.map(|millidegrees| millidegrees as f64 / 1e3),
            throttled: firmware.and_then(|text| Throttled::read(&text)),
        }
    }
}

impl Throttled {
    /// Reads a hexadecimal number, with or without `0x`.
    fn read(text: &str) -> Option<Self> {
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok().map(Self::of)
    }

    /// What the bits mean.
    fn of(bits: u32) -> Self {
        let bit = |index: u32| bits >> index & 1 == 1;
        Self {
            under_voltage: bit(0),
            frequency_capped: bit(1),
            throttled: bit(2),
            soft_temperature_limit: bit(3),
        }
    }

    /// Whether anything does.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_zone_and_the_firmware_count() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Thermal::below(folder.path()), Thermal::default());
        for (zone, temperature) in
            [("thermal_zone0", "48312\n"), ("thermal_zone1", "61000"), ("cooling_device0", "99000")]
        {
            let path = folder.path().join("class/thermal").join(zone);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("temp"), temperature).unwrap();
        }
        // A sensor that is not there.
        let broken = folder.path().join("class/thermal/thermal_zone2");
        fs::create_dir_all(&broken).unwrap();
        fs::write(broken.join("temp"), "-274000").unwrap();
        let found = Thermal::below(folder.path());
        assert_eq!((found.temperature_c, found.throttled), (Some(61.0), None));

        fs::create_dir_all(folder.path().join("devices/platform/soc/3f000000.mmc")).unwrap();
        for place in ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"] {
            let firmware = folder.path().join("devices/platform").join(place);
            fs::create_dir_all(&firmware).unwrap();
            for (text, expected) in [
                ("0\n", Some(Throttled::default())),
                (
                    "50005",
                    Some(Throttled {
                        under_voltage: true,
                        throttled: true,
                        ..Throttled::default()
                    }),
                ),
                ("0x8", Some(Throttled { soft_temperature_limit: true, ..Throttled::default() })),
                ("?", None),
            ] {
                fs::write(firmware.join("get_throttled"), text).unwrap();
                assert_eq!(Thermal::below(folder.path()).throttled, expected, "{place}: {text}");
            }
            fs::remove_dir_all(&firmware).unwrap();
        }
    }
}

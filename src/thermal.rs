//! How hot the board is and whether its firmware holds it back, as the system tells: files in sysfs.
//! Where there are none, nothing is known, which is no error.

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

/// Where a Raspberry Pi's kernel shows what the firmware says.
const FIRMWARE: &str = "devices/platform/soc/soc:firmware/get_throttled";

impl Thermal {
    /// The state now.
    pub fn now() -> Self {
        Self::below(Path::new("/sys"))
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
        let firmware = fs::read_to_string(sys.join(FIRMWARE)).ok();
        Self {
            temperature_c: temperature.map(|millidegrees| millidegrees as f64 / 1e3),
            throttled: firmware.and_then(|text| Throttled::read(&text)),
        }
    }
}

impl Throttled {
    /// Reads a hexadecimal number, with or without `0x`.
    fn read(text: &str) -> Option<Self> {
        let bits = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()?;
        let bit = |index: u32| bits >> index & 1 == 1;
        Some(Self {
            under_voltage: bit(0),
            frequency_capped: bit(1),
            throttled: bit(2),
            soft_temperature_limit: bit(3),
        })
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

        let firmware = folder.path().join(FIRMWARE);
        fs::create_dir_all(firmware.parent().unwrap()).unwrap();
        for (text, expected) in [
            ("0\n", Some(Throttled::default())),
            (
                "50005",
                Some(Throttled { under_voltage: true, throttled: true, ..Throttled::default() }),
            ),
            ("0x8", Some(Throttled { soft_temperature_limit: true, ..Throttled::default() })),
            ("?", None),
        ] {
            fs::write(&firmware, text).unwrap();
            assert_eq!(Thermal::below(folder.path()).throttled, expected, "{text}");
        }
    }
}

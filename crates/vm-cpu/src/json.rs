//! An offer as JSON: what `vmctl cpu` prints and `baseline:FILE` reads.
//!
//! What CPU features there are stands in it twice: as CPUID, which counts, and by their names, for
//! the reader. Numbers that manuals write in hexadecimal are strings of that form.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use vm_state::CpuidLeaf;
use vm_state::compat::{Level, address_bits, arch_capability_names, feature_names, vendor};

use crate::offer::{Offer, TscRange};

/// The version that is written.
const VERSION: u64 = 1;

/// Why a file is no offer.
#[derive(Debug, Error)]
pub enum OfferError {
    /// It cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// It is something else.
    #[error("{} is not from vmctl cpu", .0.display())]
    Form(PathBuf, #[source] serde_json::Error),
    /// It was written by a newer release.
    #[error(
        "{} is of version {found}, and this program knows up to {VERSION}: use that of one release",
        file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u64,
    },
}

/// A number as a string, `0x1f`.
#[derive(Clone, Copy)]
struct Hex(u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.strip_prefix("0x").unwrap_or("");
        let number = u64::from_str_radix(digits, 16);
        number.map(Self).map_err(|_| de::Error::custom(format_args!("{text:?} is not 0x...")))
    }
}

impl Hex {
    fn word<E: de::Error>(self) -> Result<u32, E> {
        u32::try_from(self.0).map_err(|_| E::custom(format_args!("{:#x} has not 32 bits", self.0)))
    }
}

#[derive(Serialize, Deserialize)]
struct Leaf {
    function: Hex,
    index: Hex,
    flags: u32,
    eax: Hex,
    ebx: Hex,
    ecx: Hex,
    edx: Hex,
}

/// What counts.
#[derive(Serialize, Deserialize)]
struct Body {
    cpuid: Vec<Leaf>,
    xsave_components: Hex,
    arch_capabilities: Hex,
    msrs: Vec<Hex>,
    tsc_min_khz: u32,
    tsc_max_khz: u32,
    tsc_scaling: bool,
}

/// What is said of it beside.
#[derive(Serialize)]
struct Page<'a> {
    version: u64,
    vendor: String,
    level: Option<String>,
    physical_address_bits: u32,
    features: Vec<String>,
    arch_capability_bits: Vec<String>,
    #[serde(flatten)]
    body: &'a Body,
}

impl From<&Offer> for Body {
    fn from(offer: &Offer) -> Self {
        let hex = |value: u32| Hex(value.into());
        let leaf = |leaf: &CpuidLeaf| Leaf {
            function: hex(leaf.function),
            index: hex(leaf.index),
            flags: leaf.flags,
            eax: hex(leaf.eax),
            ebx: hex(leaf.ebx),
            ecx: hex(leaf.ecx),
            edx: hex(leaf.edx),
        };
        Self {
            cpuid: offer.cpuid.iter().map(leaf).collect(),
            xsave_components: Hex(offer.xsave_components),
            arch_capabilities: Hex(offer.arch_capabilities),
            msrs: offer.msrs.iter().copied().map(hex).collect(),
            tsc_min_khz: offer.tsc.min_khz,
            tsc_max_khz: offer.tsc.max_khz,
            tsc_scaling: offer.tsc.scaling,
        }
    }
}

impl Body {
    fn offer<E: de::Error>(self) -> Result<Offer, E> {
        let leaf = |leaf: Leaf| {
            Ok(CpuidLeaf {
                function: leaf.function.word()?,
                index: leaf.index.word()?,
                flags: leaf.flags,
                eax: leaf.eax.word()?,
                ebx: leaf.ebx.word()?,
                ecx: leaf.ecx.word()?,
                edx: leaf.edx.word()?,
            })
        };
        Ok(Offer {
            cpuid: self.cpuid.into_iter().map(leaf).collect::<Result<_, E>>()?,
            xsave_components: self.xsave_components.0,
            arch_capabilities: self.arch_capabilities.0,
            msrs: self.msrs.into_iter().map(Hex::word).collect::<Result<_, E>>()?,
            tsc: TscRange {
                min_khz: self.tsc_min_khz,
                max_khz: self.tsc_max_khz,
                scaling: self.tsc_scaling,
            },
        })
    }
}

impl Offer {
    /// The offer as JSON, on many lines, the last one ended.
    pub fn to_json(&self) -> String {
        let page = Page {
            version: VERSION,
            vendor: vendor(&self.cpuid),
            level: Level::of(&self.cpuid).map(|level| level.to_string()),
            physical_address_bits: address_bits(&self.cpuid),
            features: feature_names(&self.cpuid),
            arch_capability_bits: arch_capability_names(self.arch_capabilities),
            body: &Body::from(self),
        };
        // Strings, numbers and lists of them: nothing of it can fail.
        serde_json::to_string_pretty(&page).unwrap_or_default() + "\n"
    }

    /// Reads what [`Self::to_json`] wrote to a file.
    ///
    /// # Errors
    /// [`OfferError`] with the name of the file.
    pub fn read(file: &Path) -> Result<Self, OfferError> {
        let text =
            fs::read_to_string(file).map_err(|why| OfferError::Read(file.to_owned(), why))?;
        Self::from_json(&text, file)
    }

    fn from_json(text: &str, file: &Path) -> Result<Self, OfferError> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let form = |why| OfferError::Form(file.to_owned(), why);
        // A later version may have other fields, so it is looked at before they are.
        let Version { version: found } = serde_json::from_str(text).map_err(form)?;
        if found > VERSION {
            return Err(OfferError::Newer { file: file.to_owned(), found });
        }
        serde_json::from_str::<Body>(text).and_then(Body::offer).map_err(form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        let leaf = |function, [eax, ebx, ecx, edx]: [u32; 4]| CpuidLeaf {
            function,
            index: 0,
            flags: u32::from(function == 7),
            eax,
            ebx,
            ecx,
            edx,
        };
        Offer {
            cpuid: vec![
                leaf(0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
                leaf(7, [0, 1 << 5, 0, 1 << 29]),
                leaf(0x8000_0008, [0x392e, 0, 0, 0]),
            ],
            xsave_components: 7,
            arch_capabilities: 0x2b,
            msrs: vec![0x10, 0xc000_0082],
            tsc: TscRange { min_khz: 2_000_000, max_khz: 2_500_000, scaling: true },
        }
    }

    #[test]
    fn an_offer_is_read_back_and_people_find_names_in_it() {
        let text = offer().to_json();
        assert_eq!(Offer::from_json(&text, Path::new("a")).unwrap(), offer());
        let page: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(page["vendor"], "GenuineIntel");
        assert_eq!(page["features"], serde_json::json!(["avx2", "arch_capabilities"]));
        assert_eq!(page["arch_capability_bits"][0], "rdcl_no");
        assert_eq!((&page["physical_address_bits"], &page["level"]), (&46.into(), &().into()));
        assert_eq!(page["cpuid"][1]["edx"], "0x20000000");
    }

    #[test]
    fn what_is_no_offer_is_refused_with_the_name_of_the_file() {
        let refused =
            |text: &str| Offer::from_json(text, Path::new("h.json")).unwrap_err().to_string();
        assert_eq!(refused("features: avx"), "h.json is not from vmctl cpu");
        assert_eq!(refused("{\"version\": 1}"), "h.json is not from vmctl cpu");
        assert!(refused("{\"version\": 2}").contains("h.json is of version 2"));
        let wide = offer().to_json().replace("0x20000000", "0x200000000");
        assert_eq!(refused(&wide), "h.json is not from vmctl cpu");
        let decimal = offer().to_json().replace("\"0x2b\"", "43");
        assert_eq!(refused(&decimal), "h.json is not from vmctl cpu");
    }
}

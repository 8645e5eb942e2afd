//! The machine description in a header: does it fit the header, and what processor is it?

use mig_stream::Header;
use migpipe_cli::printable;
use thiserror::Error;
use vm_state::{CpuDescription, DescriptionError, MachineDescription};

/// Why the machine of a stream cannot be built.
#[derive(Debug, Error)]
pub enum MachineError {
    /// It does not decode.
    #[error("the machine in the header cannot be read")]
    Description(#[from] DescriptionError),
    /// It is the machine of another guest.
    #[error("the header is of guest {header}, and the machine in it of guest {machine}")]
    Name {
        /// The name in the header.
        header: String,
        /// The name in the description.
        machine: String,
    },
}

/// Reads the machine description and holds it against the header around it.
pub fn read(header: &Header) -> Result<MachineDescription, MachineError> {
    let machine = MachineDescription::decode(&header.machine, &header.regions)?;
    if machine.name != header.guest {
        return Err(MachineError::Name {
            header: header.guest.clone(),
            machine: printable(&machine.name),
        });
    }
    Ok(machine)
}

/// The name of the processor that the guest sees: the brand string, else the vendor (AMD64
/// Architecture Programmer's Manual, volume 3, appendix E: functions 0 and 8000_0002h to
/// 8000_0004h).
pub fn processor(cpu: &CpuDescription) -> Option<String> {
    let leaf = |function| cpu.cpuid.iter().find(|leaf| leaf.function == function);
    let text = |words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let text = String::from_utf8_lossy(&bytes);
        let text = printable(text.trim_matches(['\0', ' ']));
        (!text.is_empty()).then_some(text)
    };
    let brand: Vec<u32> = (0x8000_0002..=0x8000_0004)
        .filter_map(leaf)
        .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
        .collect();
    text(&brand).or_else(|| leaf(0).and_then(|leaf| text(&[leaf.ebx, leaf.edx, leaf.ecx])))
}

//! From the 32-bit PVH entry to Rust at CPL 3.
//!
//! Everything before the `iretq` runs at CPL 0, which KVM on PVM hosts emulates, slowly and with a
//! small set of instructions. So there is no loop there: the page tables, the GDT and the TSS are
//! assembled into the image, and memory above 1 GiB is mapped later, from CPL 3
//! ([`crate::memory`]).
//!
//! Ports are opened to CPL 3 twice. PVM does not keep RFLAGS.IOPL, so the TSS has an I/O bitmap that
//! permits all. QEMU's emulated AMD-V does not look at the bitmap of a TSS that is marked as busy,
//! which it is in every state that KVM saves, so RFLAGS.IOPL is 3.
//!
//! Every vCPU enters at `pvh_entry`, in the state that the PVH boot ABI gives (32-bit protected
//! mode, paging off, EBX = hvm_start_info), and its number is that of its APIC (CPUID leaf 1). The
//! private addition of this guest: all are started at once, there is no INIT or SIPI.

use core::arch::global_asm;

/// How many vCPUs have a stack and a TSS descriptor.
pub const MAX_CPUS: usize = 64;

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18                  // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .boot.tables, "awx", @progbits
    .balign 4096
    .globl boot_pml4, boot_pdpt, boot_pd, boot_gdt, boot_tss
boot_pml4:                          // all entries: present, writable, user
    .quad 0x101007
    .fill 511, 8, 0
boot_pdpt:
    .quad 0x102007
    .fill 511, 8, 0
boot_pd:                            // the first GiB in pages of 2 MiB, accessed and dirty
    .set page, 0
    .rept 512
    .quad page | 0xe7
    .set page, page + 0x200000
    .endr
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        // 0x08 code, 32 bits, CPL 0
    .quad 0x00cf93000000ffff        // 0x10 data, CPL 0
    .quad 0x00af9b000000ffff        // 0x18 code, 64 bits, CPL 0
    .quad 0x00cff3000000ffff        // 0x20 data, CPL 3
    .quad 0x00affb000000ffff        // 0x28 code, 64 bits, CPL 3
    .rept {max_cpus}                // 0x30 one TSS descriptor for each vCPU, for LTR marks it busy
    .quad 0x0000891040002068        // at 0x104000, limit 104 + 8192
    .quad 0
    .endr
boot_gdt_end:
    .balign 4096
boot_tss:                           // shared by all: there are no interrupts and no stack switches
    .fill 102, 1, 0
    .word 104                       // the I/O bitmap: 65,536 zeros permit every port
    .fill 8192, 1, 0
    .byte 0xff
boot_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

    .section .boot.text, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cmp dword ptr [ebx], 0x336ec578 // the magic of hvm_start_info
    jne 2f
    mov edi, ebx
    mov eax, 1
    cpuid
    shr ebx, 24                     // the number of the APIC
    mov esi, ebx
    cmp esi, {max_cpus}
    jae 2f
    lgdt [boot_gdtr]
    mov eax, 0x100000
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620                   // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080             // EFER.LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    and eax, 0xfffffff3             // neither EM nor TS: SSE is used from here on
    or eax, 0x80000002              // PG, MP
    mov cr0, eax
    ljmp 0x18, offset boot_long
2:  cli
    hlt
    jmp 2b

    .code64
boot_long:
    mov eax, esi
    shl eax, 4
    add eax, 0x30
    ltr ax
    mov eax, esi
    inc eax
    shl eax, {stack_shift}
    lea rsp, [rax + boot_stacks]
    mov edi, edi
    mov rax, rsp
    push 0x23
    push rax
    push 0x3002
    push 0x2b
    push offset boot_user
    iretq
boot_user:
    xor ebp, ebp
    call guest_main
    ud2

    .section .bss
    .balign 4096
boot_stacks:
    .fill {max_cpus} << {stack_shift}, 1, 0
    .text
"#,
    max_cpus = const MAX_CPUS,
    stack_shift = const 14,
);

unsafe extern "C" {
    /// The first byte behind the image, from the linker script; only its address means anything.
    static image_end: u8;
    static boot_pdpt: u8;
}

/// The address of the first byte behind the image.
pub fn end_of_image() -> u64 {
    &raw const image_end as u64
}

/// The address of the page directory pointer table.
pub fn page_directory_pointers() -> u64 {
    &raw const boot_pdpt as u64
}

# A guest of scripts/units: says "boot", then "tick" for each byte that comes at its serial port; an "r"
# has it ask for a reset. By PVH, without a stack.
    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long start
    .text
    .code32
    .globl start
start:
    mov $boot, %esi
print:
    mov $0x3f8, %dx
    lodsb
    test %al, %al
    jz wait
    out %al, %dx
    jmp print
wait:
    # The line status register: a byte has come.
    mov $0x3fd, %dx
    in %dx, %al
    test $1, %al
    jz wait
    mov $0x3f8, %dx
    in %dx, %al
    mov $tick, %esi
    cmp $'r', %al
    jne print
    mov $0xfe, %al
    out %al, $0x64
    hlt
boot: .asciz "boot\n"
tick: .asciz "tick\n"

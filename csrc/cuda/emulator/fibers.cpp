#include "fibers.h"

asm(R"(
.text
.globl vrnn_switch
.type vrnn_switch,@function
vrnn_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size vrnn_switch, . - vrnn_switch
)");

// Every tuning decision that a kernel is compiled with; where weights lie, vrnn_fast/executors/cuda/memory.py decides.
// None has been measured on a GPU: they follow what the assembler makes of them, bench/results/cuda-resources.md.
namespace vrnn::tuning {

// Tiles of sums and states that a thread of a forward kernel holds from visit to visit, at most, for a third block on
// one multiprocessor, which leaves 80 registers, where shared memory has room for three. With no weights in registers,
// and operands of 16 bits, none of them spills; left alone, the assembler takes a third more to have more loads on
// their way.
constexpr int most_live = 6;
constexpr bool few_live =
    !program::pass && program::state_tiles + program::kept_tiles <= most_live && program::resident_words == 0;
constexpr bool of_16_bits = program::operand == Operand::bf16 || program::operand == Operand::f16;
constexpr bool three_have_room = 3 * program::shared_bytes + 2048 <= program::shared_limit;
constexpr bool three = !program::reverse && of_16_bits && few_live && three_have_room;

// Blocks of one multiprocessor that registers leave room for; program::blocks that shared memory does.
constexpr int blocks = program::ranks > 1 ? 1 : three ? 3 : program::blocks;

}  // namespace vrnn::tuning

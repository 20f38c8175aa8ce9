"""Test the analysis of compiled programs on short texts, with figures worked out by hand."""

import pytest

from deeplab_jax.plan.hlo import count_bytes, describe_origin, measure_traffic

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_computation (param_0: bf16[1,4,4,8]) -> bf16[1,4,4,8] {
  %param_0 = bf16[1,4,4,8]{3} parameter(0)
  %kernel = bf16[3,3,8,8]{3,2,1,0} constant({...})
  ROOT %convolution.1 = bf16[1,4,4,8]{3} convolution(%param_0, %kernel), metadata={op_name="FORWARD/backbone/stage1_block1"}
}

%body (arg: (f32[10])) -> (f32[10]) {
  %arg = (f32[10]{0}) parameter(0)
  %value = f32[10]{0} get-tuple-element(%arg), index=0
  %doubled = f32[10]{0} add(%value, %value)
  ROOT %result = (f32[10]{0}) tuple(%doubled)
}

ENTRY %main (x: bf16[1,4,4,8], sums: f32[2,8]) -> f32[2,8] {
  %x = bf16[1,4,4,8]{3} parameter(0)
  %sums = f32[2,8]{1,0} parameter(1)
  %fusion.1 = bf16[1,4,4,8]{3} fusion(%x), kind=kOutput, calls=%fused_computation
  %gradient = bf16[1,4,4,8]{3} custom-call(%fusion.1), a="__cudnn$convBackwardInput", metadata={op_name="BACKWARD/aspp/conv"}
  %copy.1 = bf16[1,4,4,8]{2:T(8,128)S(1)} copy(%fusion.1)
  %all-reduce-start = f32[2,8]{1,0} all-reduce-start(%sums), metadata={op_name="FORWARD/backbone/stage1_block1"}
  %all-reduce-done = f32[2,8]{1,0} all-reduce-done(%all-reduce-start)
  %loop = (f32[10]{0}) while(%start), condition=%condition, body=%body
  %joined = f32[2,8]{1,0} add(%sums, %sums), metadata={op_name="BACKWARD/classifier/sum"}
  ROOT %all-reduce.2 = f32[2,8]{1,0} all-reduce(%joined), to_apply=%region
}
""".replace("FORWARD", "jit(step)/jvp(DeepLabV3)").replace("BACKWARD", "jit(step)/transpose(jvp(DeepLabV3))")


def test_a_program_is_summarized():
    traffic = measure_traffic(PROGRAM)
    # A collective without a name belongs to the part that its operand comes from.
    assert traffic.collectives == {"all-reduce, stage 1 forward": (1, 64), "all-reduce, classifier backward": (1, 64)}
    assert traffic.convolutions == {"forward": 1, "backward, convBackwardInput": 1}
    assert (traffic.copies, traffic.copied) == (1, 256)
    # The fusion reads and writes 256 bytes, and so does the gradient. The copy only reads, because it writes to the memory on
    # the chip. The collectives and the sum read and write 64 bytes each, and the loop's body 40.
    assert traffic.moved == 2 * 256 + 2 * 256 + 256 + 3 * 2 * 64 + 2 * 40


@pytest.mark.parametrize(
    ("shape", "size", "in_memory"),
    [
        ("bf16[2,8]{1,0}", 32, 32),
        ("pred[]", 1, 1),
        ("(f32[10]{0}, u32[]{:S(2)})", 44, 40),
        ("f32[4,128]{1,0:T(8,128)S(1)}", 2048, 0),
        ("f8e4m3fn[8]{0}", 8, 8),
        ("token[]", 1, 1),
    ],
)
def test_the_size_of_a_shape_is_counted(shape, size, in_memory):
    assert (count_bytes(shape), count_bytes(shape, in_memory=True)) == (size, in_memory)


@pytest.mark.parametrize(
    ("origin", "part"),
    [
        ("jit(step)/jvp(DeepLabV3)/backbone/backbone._stem/stem_bn1/reduce_sum", "stem forward"),
        ("jit(step)/transpose(jvp(DeepLabV3))/backbone/stage3_block2/conv1/conv_general_dilated", "stage 3 backward"),
        ("jit(step)/jvp(DeepLabV3)/aspp/branch_1x1/conv/conv_general_dilated", "ASPP forward"),
        ("jit(step)/transpose(jvp())/reduce_sum", "loss backward"),
        ("jit(step)/mul", "update"),
    ],
)
def test_operations_are_assigned_to_parts_of_the_step(origin, part):
    assert describe_origin(origin) == part

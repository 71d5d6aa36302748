"""The parser and the cost walk on literal program texts, each figure worked out by hand."""

import pytest

from fot_jax.aot.hlo import Array, group_size, largest_arrays, parse_instruction, parse_module, parse_shape, trip_count
from fot_jax.aot.hlo_costs import count

# A scan of 5 runs: one product 4x8 by 8x16, one all-gather, one fused slice of a stack that is in HBM.
LOOP = """
HloModule jit_step, is_scheduled=true

%sliced (stack: f32[5,8,16], i: s32[]) -> f32[1,8,16] {
  %stack = f32[5,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %piece = f32[1,8,16]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,8,16}
}

%body (carry: (s32[], f32[4,8], f32[5,8,16])) -> (s32[], f32[4,8], f32[5,8,16]) {
  %carry = (s32[], f32[4,8]{1,0:T(8,128)S(1)}, f32[5,8,16]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%carry), index=0
  %x = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%carry), index=1
  %w = f32[5,8,16]{2,1,0} get-tuple-element(%carry), index=2
  %one = f32[1,8,16]{2,1,0} fusion(%w, %n), kind=kLoop, calls=%sliced
  %flat = f32[8,16]{1,0} bitcast(%one)
  %dot = f32[4,16]{1,0} dot(%x, %flat), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %whole = f32[16,16]{1,0} all-gather(%dot), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %step = s32[] constant(1)
  %next = s32[] add(%n, %step)
  ROOT %out = (s32[], f32[4,8]{1,0:T(8,128)S(1)}, f32[5,8,16]{2,1,0}) tuple(%next, %x, %w)
}

%condition (carry.1: (s32[], f32[4,8], f32[5,8,16])) -> pred[] {
  %carry.1 = (s32[], f32[4,8]{1,0:T(8,128)S(1)}, f32[5,8,16]{2,1,0}) parameter(0)
  %other = s32[] constant(99)
  %limit = s32[] constant(5)
  %n.1 = s32[] get-tuple-element(%carry.1), index=0
  ROOT %lt = pred[] compare(%n.1, %limit), direction=LT
}

ENTRY %main (p: (s32[], f32[4,8], f32[5,8,16])) -> (s32[], f32[4,8], f32[5,8,16]) {
  %p = (s32[], f32[4,8]{1,0:T(8,128)S(1)}, /*index=2*/f32[5,8,16]{2,1,0}) parameter(0)
  ROOT %loop = (s32[], f32[4,8]{1,0:T(8,128)S(1)}, f32[5,8,16]{2,1,0}) while(%p), condition=%condition, body=%body
}
"""


def entry(*lines: str, before: str = "") -> str:
    """A program of these instructions; names starting with p are its parameters."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n{before}\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n"


def costs(*lines: str, before: str = "", devices: int = 8, shares=None):
    return count(parse_module(entry(*lines, before=before)), devices=devices, branch_shares=shares)


def test_parse_shape_reads_arrays_and_tuples():
    """Reads the dimensions, the place and the bytes of each, and refuses a type that it does not know."""
    assert parse_shape("bf16[128,2048]{1,0:T(8,128)(2,1)S(1)}") == (Array("bf16", (128, 2048), on_chip=True),)
    first, second, third = parse_shape("(f32[], /*index=1*/pred[3]{0}, s4[10]{0:T(256)})")
    assert (first.bytes, second.bytes, third.bytes) == (4, 3, 5)
    assert parse_shape("f8e4m3fn[7]")[0].bytes == 7
    with pytest.raises(ValueError, match="'x9' of HLO is unknown"):
        _ = parse_shape("x9[2]")[0].bytes


def test_parse_instruction_reads_all_its_parts():
    """Reads name, opcode, operands, computations that are called, and metadata."""
    one = parse_instruction(
        "  ROOT %a.1 = (f32[2]{0:T(256)}, u32[]) fusion(%b, %c.2), kind=kLoop, calls=%f.3,"
        ' metadata={op_name="jit(s)/x)/cond"}'
    )
    assert one is not None
    assert (one.name, one.opcode, one.operands, one.is_root) == ("a.1", "fusion", ("b", "c.2"), True)
    assert (one.bytes, one.called, one.op_name) == (12, {"calls": "f.3"}, "jit(s)/x)/cond")
    assert parse_instruction("}") is None


def test_parse_module_refuses_a_program_without_entry():
    """Raises ValueError."""
    with pytest.raises(ValueError, match="without an ENTRY"):
        parse_module("HloModule m\n")


def test_count_of_a_loop_is_as_often_as_it_runs():
    """Counts five runs of a product, a gather and a slice."""
    found = count(parse_module(LOOP), devices=8)
    assert found.flops == 5 * 2 * 4 * 16 * 8
    assert found.received == {"all-gather": 5 * 16 * 16 * 4 * 3 / 4}
    assert found.collectives == {"all-gather": 5}
    # a run: slice read and written; its product with x, which is on the chip; the gathered array twice; the counter
    assert found.hbm_bytes == 5 * (512 + 4 + 512 + (512 + 256) + 2 * 1024 + 3 * 4)
    assert found.unknown_loops == 0


def test_largest_arrays_are_made_outside_of_fusions():
    """Leaves out the stack of 2560 bytes, which is handed on; the gathered array is made."""
    assert largest_arrays(parse_module(LOOP), most=2) == [("f32[16,16]", 1024, ""), ("f32[1,8,16]", 512, "")]


def test_count_of_a_product_with_one_row():
    """Counts 3200 x 16 multiplications and sums; the same sum under another name is no product."""
    lines = (
        "%p = f32[3200,16] parameter(0)",
        "%zero = f32[] constant(0)",
        '%sum = f32[16] reduce(%p, %zero), dimensions={0}, to_apply=%add, metadata={op_name="jit(f)/up/dot_general"}',
        'ROOT %mean = f32[16] reduce(%p, %zero), dimensions={0}, to_apply=%add, metadata={op_name="jit(f)/reduce_sum"}',
    )
    assert costs(*lines).flops == 2 * 3200 * 16


def test_trip_count_is_read_or_unknown():
    """Reads it from the compiler's note or the loop's bounds; None where neither says it."""
    module = parse_module(LOOP)
    loop = module.computations["main"].root
    assert trip_count(module, loop) == 5
    noted = parse_module(LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'))
    assert trip_count(noted, noted.computations["main"].root) == 7
    open_ended = parse_module(LOOP.replace("direction=LT", "direction=NE"))
    assert trip_count(open_ended, open_ended.computations["main"].root) is None
    for step, runs in (("constant(2)", 3), ("constant(5)", 1), ("constant(0)", None), ("parameter(1)", None)):
        stepped = parse_module(LOOP.replace("%step = s32[] constant(1)", f"%step = s32[] {step}"))
        assert trip_count(stepped, stepped.computations["main"].root) == runs
    elsewhere = parse_module(LOOP.replace("element(%carry.1), index=0", "element(%carry.1), index=2"))
    assert trip_count(elsewhere, elsewhere.computations["main"].root) is None
    once = count(open_ended, devices=8)
    assert (once.unknown_loops, once.collectives["all-gather"]) == (1, 1)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups=[2,64]<=[128]", 64),
        ("replica_groups=[64,2]<=[2,64]T(1,0)", 2),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=mesh['axis_0'=64,'axis_1'=1,'axis_2'=2], device_ids=([2,64]T(1,0)) {'axis_0'}", 64),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("replica_groups=mesh['a'=64,'b'=2] {'a':(4)16}", 16),
        ("replica_groups={}", 128),
        ("channel_id=3", 128),
    ],
)
def test_group_size_of_every_notation(groups, size):
    """Reads how many devices take part in one collective."""
    one = parse_instruction(f"  %a = f32[4] all-reduce(%b), {groups}, to_apply=%sum")
    assert one is not None
    assert group_size(one, 128) == size


@pytest.mark.parametrize(
    ("line", "received"),
    [
        ("all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}", {"all-gather": 1024 * 3 / 4}),
        ("all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%s", {"all-reduce": 2 * 1024 * 3 / 4}),
        ("reduce-scatter(%p), replica_groups=[2,4]<=[8], to_apply=%s", {"reduce-scatter": 1024 * 3}),
        ("all-to-all(%p), replica_groups=[1,8]<=[8]", {"all-to-all": 1024 * 7 / 8}),
        ("collective-permute(%p), source_target_pairs={{0,1},{1,0}}", {"collective-permute": 1024}),
    ],
)
def test_count_of_bytes_that_a_device_receives(line, received):
    """Counts what rings of each collective bring to a device."""
    assert costs("%p = f32[256] parameter(0)", f"ROOT %c = f32[256]{{0}} {line}").received == received


def test_count_of_asynchronous_collectives_is_once():
    """Counts a start and its end as one."""
    found = costs(
        "%p = f32[64] parameter(0)",
        "%s = (f32[64], f32[256]) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}",
        "%d = f32[256] all-gather-done(%s)",
        "%t = (f32[256], f32[256], u32[], u32[]) collective-permute-start(%d), source_target_pairs={{0,1}}",
        "ROOT %u = f32[256] collective-permute-done(%t)",
    )
    assert found.received == {"all-gather": 1024 * 3 / 4, "collective-permute": 1024}
    assert found.overlapped == {"all-gather": 0, "collective-permute": 0}  # nothing but waiting in between


def test_count_of_permutes_overlapped_with_other_work():
    """Counts those with an instruction that computes between start and end."""
    start = "%s = (f32[64], f32[64], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}"
    done, other = "ROOT %d = f32[64] collective-permute-done(%s)", "%o = f32[64] negate(%p)"
    free = "%f = f32[8,8] bitcast(%p)"
    for lines, overlapped in (
        ((start, free, other, done), 1),
        ((other, start, free, done), 0),
        ((start, done, other), 0),
    ):
        assert costs("%p = f32[64] parameter(0)", *lines).overlapped == {"collective-permute": overlapped}


def test_count_of_an_all_reduce_that_keeps_a_part():
    """Counts a fusion of an all-reduce and a slice as a reduce-scatter."""
    scattered = """
%all-reduce-scatter.1 (q: f32[256]) -> f32[64] {
  %q = f32[256] parameter(0)
  %i = s32[] partition-id()
  %r = f32[256] all-reduce(%q), replica_groups=[2,4]<=[8], to_apply=%s
  ROOT %k = f32[64] dynamic-slice(%r, %i), dynamic_slice_sizes={64}
}
"""
    found = costs(
        "%p = f32[256] parameter(0)",
        "ROOT %f = f32[64] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1",
        before=scattered,
    )
    assert found.received == {"reduce-scatter": 1024 * 3 / 4}
    assert found.hbm_bytes == 1024 + 256


def test_count_of_a_conditional_is_its_costliest_branch():
    """Multiplies it by the share of runs that take it, where that is known."""
    branches = """
%near (a: f32[8,8]) -> f32[8,8] {
  ROOT %a = f32[8,8] parameter(0)
}

%far (b: f32[8,8]) -> f32[8,8] {
  %b = f32[8,8] parameter(0)
  ROOT %m = f32[8,8] dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    lines = (
        "%p = f32[8,8] parameter(0)",
        "%t = pred[] constant(true)",
        "ROOT %c = f32[8,8] conditional(%t, %p, %p), branch_computations={%near, %far},"
        ' metadata={op_name="jit(f)/memory_branch/cond"}',
    )
    whole = 2 * 8 * 8 * 8
    assert costs(*lines, before=branches).flops == whole
    shared = costs(*lines, before=branches, shares={r"memory_branch/cond$": 3 / 26})
    assert shared.flops == pytest.approx(whole * 3 / 26)
    assert costs(*lines, before=branches, shares={r"elsewhere": 0.5}).flops == whole


def test_count_of_an_update_in_place_is_the_update():
    """Counts no bytes of the stack that it is written into."""
    inside = """
%put (stack: f32[5,8], row: f32[1,8], i: s32[]) -> f32[5,8] {
  %stack = f32[5,8] parameter(0)
  %row = f32[1,8] parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[5,8] dynamic-update-slice(%stack, %row, %i, %i)
}
"""
    found = costs(
        "%p = f32[5,8] parameter(0)",
        "%q = f32[1,8] parameter(1)",
        "%i = s32[] parameter(2)",
        "ROOT %f = f32[5,8] fusion(%p, %q, %i), kind=kLoop, calls=%put",
        before=inside,
    )
    assert found.hbm_bytes == 32 + 32 + 4


@pytest.mark.parametrize(
    ("left", "right", "out", "attributes", "products"),
    [
        # a plain product 2048 x 3200 by 3200 x 8640
        ("2048,3200", "3200,8640", "2048,8640", "dim_labels=bf_io->bf", 2048 * 3200 * 8640),
        # q of 32 heads: the window runs over the heads, one of them meets each output
        (
            "2048,3200,1",
            "32,3200,100",
            "2048,32,100",
            "window={size=32 pad=31_31 rhs_reversal=1}, dim_labels=bf0_0io->b0f",
            2048 * 3200 * 3200,
        ),
        # scores of 32 heads: a batch of 32 products written as a dilated window
        (
            "32,2048,100",
            "32,512,100",
            "32,2048,512",
            "window={size=32 stride=31 lhs_dilate=32}, dim_labels=0bf_0oi->0bf",
            32 * 2048 * 512 * 100,
        ),
        # the output projection: the window sums over the heads
        ("2048,32,100", "32,100,3200", "2048,3200,1", "window={size=32}, dim_labels=b0f_0io->bf0", 2048 * 3200 * 3200),
    ],
)
def test_count_of_products_written_as_convolutions(left, right, out, attributes, products):
    """Counts the multiplications of each window's form."""
    found = costs(
        f"%p = bf16[{left}] parameter(0)",
        f"%q = bf16[{right}] parameter(1)",
        f"ROOT %c = bf16[{out}] convolution(%p, %q), {attributes}",
    )
    assert found.flops == 2 * products


def test_count_of_kernels_is_what_they_declare():
    """Takes FLOPs from the cost estimate, bytes from the operands; a buffer is no kernel."""
    found = costs(
        "%p = f32[256] parameter(0)",
        '%a = f32[256] custom-call(), custom_call_target="AllocateBuffer"',
        'ROOT %k = f32[256] custom-call(%p), custom_call_target="tpu_custom_call",'
        ' backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","bytes_accessed":"9"}}}',
    )
    assert (found.flops, dict(found.kernels), found.hbm_bytes) == (1000, {"tpu_custom_call": 1}, 2048)


def test_count_of_what_is_fetched_to_the_chip_is_once():
    """Counts the bytes of a copy to the chip's memory and no further read."""
    fetched = costs(
        "%p = f32[256] parameter(0)",
        "%s = (f32[256]{0:S(1)}, f32[256]{0}, u32[]) copy-start(%p)",
        "%d = f32[256]{0:S(1)} copy-done(%s)",
        "ROOT %n = f32[256]{0} negate(%d)",
    )
    assert fetched.hbm_bytes == 1024 + 1024  # p read, n written
    cut = costs("%p = f32[256] parameter(0)", "ROOT %s = f32[64]{0:S(1)} slice(%p), slice={[0:64]}")
    assert cut.hbm_bytes == 256
    for chip, moved in ((":S(1)", 256), ("", 512)):  # read, and written unless it is on the chip
        started = costs(
            "%p = f32[256] parameter(0)",
            f"%s = ((f32[256]{{0}}), f32[64]{{0{chip}}}, u32[]) slice-start(%p), slice={{[0:64]}}",
            f"ROOT %d = f32[64]{{0{chip}}} slice-done(%s)",
        )
        assert started.hbm_bytes == moved

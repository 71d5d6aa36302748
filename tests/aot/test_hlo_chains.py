"""A collective that a TPU's compiler spreads over the fusions around it, in a literal program text."""

from tests.aot.test_hlo import costs

MARK = 'backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}'
CHAIN = """
%begin (a: bf16[1,8]) -> (bf16[1,8], bf16[4,8], u32[]) {
  %a = bf16[1,8] parameter(0)
  %gather.1 = bf16[4,8] all-gather(%a), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, MARK
  ROOT %call.1 = (bf16[1,8], bf16[4,8], u32[]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (b: bf16[1,8], whole: bf16[4,8], n: u32[], x: f32[2,3], y: f32[3,5]) -> (f32[2,5]) {
  %b = bf16[1,8] parameter(0)
  %whole = bf16[4,8] parameter(1)
  %n = u32[] parameter(2)
  %x = f32[2,3] parameter(3)
  %y = f32[3,5] parameter(4)
  %product = f32[2,5] dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %gather.2 = bf16[4,8] all-gather(%b), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, MARK
  ROOT %all = (f32[2,5], bf16[1,8], bf16[4,8], bf16[4,8], u32[]) tuple(%product, %b, %whole, %gather.2, %n)
}

%end (c: bf16[1,8], done: bf16[4,8], m: u32[]) -> bf16[4,8] {
  %c = bf16[1,8] parameter(0)
  %done = bf16[4,8] parameter(1)
  %m = u32[] parameter(2)
  %gather.3 = bf16[4,8] all-gather(%c), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, MARK
  ROOT %call.2 = bf16[4,8] custom-call(%c, %done, %gather.3, %m), custom_call_target="AsyncCollectiveDone"
}
""".replace("MARK", MARK)


def test_count_of_a_collective_beside_fusions_is_once():
    """Counts one all-gather in three fusions, of which one multiplies; another one of the same channel counts too."""
    lines = (
        "%p = bf16[1,8] parameter(0)",
        "%p.1 = f32[2,3] parameter(1)",
        "%p.2 = f32[3,5] parameter(2)",
        "%s = (bf16[1,8], bf16[4,8], u32[]) fusion(%p), kind=kCustom, calls=%begin",
        "%s.0 = bf16[1,8] get-tuple-element(%s), index=0",
        "%s.1 = bf16[4,8] get-tuple-element(%s), index=1",
        "%s.2 = u32[] get-tuple-element(%s), index=2",
        "%f = (f32[2,5], bf16[1,8], bf16[4,8], bf16[4,8], u32[]) fusion(%s.0, %s.1, %s.2, %p.1, %p.2), kind=kOutput,"
        " calls=%beside",
        "%f.1 = bf16[1,8] get-tuple-element(%f), index=1",
        "%f.3 = bf16[4,8] get-tuple-element(%f), index=3",
        "%f.4 = u32[] get-tuple-element(%f), index=4",
        "%d = bf16[4,8] fusion(%f.1, %f.3, %f.4), kind=kCustom, calls=%end",
        "ROOT %g = bf16[4,8] all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}",
    )
    found = costs(*lines, before=CHAIN)
    assert found.collectives == {"all-gather": 2}
    assert found.received == {"all-gather": 2 * 64 * 3 / 4}
    assert found.flops == 2 * 2 * 5 * 3
    product = 4 * (2 * 3 + 3 * 5 + 2 * 5)
    assert found.hbm_bytes == 2 * (2 * 64) + product
    on_chip = [line.replace("(bf16[1,8], bf16[4,8], u32[]) fusion", "(bf16[1,8], bf16[4,8]{1,0:S(1)}, u32[]) fusion")
               for line in lines]  # fmt: skip
    assert costs(*on_chip, before=CHAIN).hbm_bytes == 2 * 64 + product

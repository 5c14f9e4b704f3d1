"""Compiled text read back: hand-made programs whose collectives, traffic and cycles are known."""

import pytest

from simclr_jax.planning.hlo import Collective, Fusion, Hlo, type_bytes

# The loop runs 5 times.
LOOP = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%inside (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0)
  ROOT %twice = f32[8]{0:T(128)} add(%p, %p)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8]{0:T(128)} get-tuple-element(%state), index=1
  %fusion.7 = f32[8]{0} fusion(%x), calls=%inside, metadata={op_name="loop/mul"}, config={"estimated_cycles":"100"}
  %all-reduce.1 = f32[8]{0:T(128)} all-reduce(%fusion.7), channel_id=2, replica_groups={{0,1}}, to_apply=%add.1
  ROOT %next = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%i, %all-reduce.1)
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(5)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%zero, %x.1)
  %while.1 = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body, config={"known_trip_count":{"n":"5"}}
  %last = f32[8]{0:T(128)} get-tuple-element(%while.1), index=1
  ROOT %fusion.8 = f32[8]{0:T(128)} fusion(%last), calls=%inside, backend_config={"estimated_cycles":"120"}
}
"""

# One gather that starts within a fusion, goes on beside other work and ends in a third fusion.
ASYNCHRONOUS = """HloModule jit_step

%start (q: f32[2,4]) -> (f32[2,4], f32[8,4]) {
  %q = f32[2,4]{1,0} parameter(0)
  %all-gather.1 = f32[8,4]{1,0} all-gather(%q), channel_id=1, dimensions={0}
  ROOT %custom-call.1 = (f32[2,4]{1,0}, f32[8,4]{1,0}) custom-call(%all-gather.1), target="AsyncCollectiveStart"
}

%end (r: f32[2,4]) -> f32[8,4] {
  %r = f32[2,4]{1,0} parameter(0)
  %all-gather.2 = f32[8,4]{1,0} all-gather(%r), channel_id=1, dimensions={0}
  ROOT %custom-call.2 = f32[8,4]{1,0} custom-call(%all-gather.2), target="AsyncCollectiveDone"
}

ENTRY %main (q.1: f32[2,4]) -> f32[2,4] {
  %q.1 = f32[2,4]{1,0} parameter(0)
  %fusion.1 = (f32[2,4]{1,0}, f32[8,4]{1,0}) fusion(%q.1), kind=kCustom, calls=%start
  %fusion.2 = f32[8,4]{1,0} fusion(%q.1), kind=kCustom, calls=%end
  %all-gather-start.1 = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%q.1), channel_id=3, dimensions={0}
  %all-gather-done.1 = f32[8,4]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %reduce-scatter.1 = f32[2,4]{1,0} reduce-scatter(%all-gather-done.1), channel_id=4, dimensions={0}
}
"""

# As a TPU's compiler writes them: a reduction of which a part is kept, and two that were combined from others.
SCATTERED = """HloModule jit_step

%all-reduce-scatter.7 (input.7: bf16[16,4]) -> bf16[2,4] {
  %input.7 = bf16[16,4]{1,0} parameter(0)
  %all-reduce.1 = bf16[16,4]{1,0} all-reduce(%input.7), channel_id=1, to_apply=%add
  %offset = s32[] constant(0)
  ROOT %dynamic-slice.1 = bf16[2,4]{1,0} dynamic-slice(%all-reduce.1, %offset, %offset)
}

ENTRY %main (p: bf16[16,4]) -> (bf16[2,4], bf16[16,4], bf16[4]) {
  %p = bf16[16,4]{1,0} parameter(0)
  %fusion.7 = bf16[2,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.7
  %all-reduce.2 = bf16[16,4]{1,0} all-reduce(%p), channel_id=1, to_apply=%add
  %row = bf16[4]{0} slice(%p), slice={[0:1], [0:4]}
  %all-reduce.3 = bf16[4]{0} all-reduce(%row), channel_id=1, to_apply=%add
  ROOT %tuple = (bf16[2,4]{1,0}, bf16[16,4]{1,0}, bf16[4]{0}) tuple(%fusion.7, %all-reduce.2, %all-reduce.3)
}
"""

# S(1) is the memory on the chip: 4 KiB come from HBM, are used there, and 1 KiB goes back.
MEMORIES = """HloModule jit_step

ENTRY %main (w: f32[1024]) -> f32[256] {
  %w = f32[1024]{0:T(1024)} parameter(0)
  %copy-start.1 = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done.1 = f32[1024]{0:T(1024)S(1)} copy-done(%copy-start.1)
  %tanh.1 = f32[1024]{0:T(1024)S(1)} tanh(%copy-done.1)
  ROOT %slice.1 = f32[256]{0:T(256)} slice(%tanh.1), slice={[0:256]}
}
"""


@pytest.mark.parametrize(
    'text, size',
    [
        ('f32[128,64]{1,0:T(8,128)}', 32768),
        ('bf16[3]{0:T(4,128)(2,1)S(1)}', 6),
        ('pred[]', 1),
        ('(f32[2]{0}, s8[3]{0}, /*index=2*/u32[]{:S(2)})', 15),
        ('token[]', 0),
        ('c64[2]', 16),
        ('s4[8]{0:T(8)}', 4),
        ('f8e4m3fn[16]', 16),
    ],
)
def test_bytes_of_types(text, size):
    assert type_bytes(text) == size


@pytest.mark.parametrize('noted', [True, False])
def test_loops_count_as_often_as_they_run(noted):
    # CPU and GPU programs say how often; TPU programs only in the condition.
    hlo = Hlo(LOOP if noted else LOOP.replace('"known_trip_count":{"n":"5"}', ''))
    assert hlo.collectives() == [Collective('all-reduce', 5, 5 * 32)]
    assert hlo.fusions() == [Fusion('fusion.7', 'loop/mul', 100, 5), Fusion('fusion.8', '', 120, 1)]
    # Each fusion reads and writes 32 bytes, the reduction as well.
    assert hlo.main_memory_traffic() == 5 * (64 + 64) + 64


def test_an_asynchronous_collective_counts_once():
    assert Hlo(ASYNCHRONOUS).collectives() == [
        Collective('all-gather', 2, 2 * 128),
        Collective('reduce-scatter', 1, 128),
    ]


def test_a_reduction_kept_in_part_is_a_reduce_scatter():
    assert Hlo(SCATTERED).collectives() == [
        Collective('all-reduce', 2, 128 + 8),
        Collective('reduce-scatter', 1, 128),
    ]


def test_the_memory_on_the_chip_is_no_traffic():
    assert Hlo(MEMORIES).main_memory_traffic() == 4096 + 1024


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match='ENTRY'):
        Hlo('nothing')

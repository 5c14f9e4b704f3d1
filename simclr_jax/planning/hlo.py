"""Reads the text of a compiled program (XLA's HLO): collectives, main memory traffic and estimated cycles."""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# Instructions that only name existing values. The computations that they call are counted separately.
_NO_TRAFFIC = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call')

# Heading of a computation: '%name (parameters) -> results {'. ENTRY stands before the main computation.
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
# Instruction: '  ROOT %name = type opcode(operands), attributes'. A type may be a tuple with spaces in it.
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][a-z0-9-]*)\((.*)$')
# Array type: 'f32[128,64]{1,0:T(8,128)S(1)}'. S(n) marks another memory than the main one.
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?\})?')
_CALLED = re.compile(r'\b(?:calls|body|true_computation|false_computation)=%?([\w.-]+)')
_APPLIED = re.compile(r'\bto_apply=%?([\w.-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_CONDITION = re.compile(r'\bcondition=%?([\w.-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r'\bchannel_id=(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'\bop_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Name of the instruction, unique in the program.
        opcode: Kind of the instruction, such as 'fusion' or 'all-reduce-start'.
        result_bytes: Bytes of its value, for a tuple the sum.
        main_bytes: Bytes of its value in the main memory (HBM), without those in on-chip memories.
        arguments: Text in its parentheses.
        attributes: Rest of the line.
    """

    name: str
    opcode: str
    result_bytes: int
    main_bytes: int
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose values this one reads."""
        return re.findall(r'%([\w.-]+)', self.arguments)

    @property
    def cycles(self) -> int:
        """Estimated cycles of one execution, 0 without an estimate."""
        found = _CYCLES.search(self.attributes)
        return int(found.group(1)) if found else 0

    @property
    def source(self) -> str:
        """Place in the traced program that this instruction comes from."""
        found = _SOURCE.search(self.attributes)
        return found.group(1) if found else ''


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind in one step.

    Attributes:
        kind: One of COLLECTIVES.
        count: Number of times that a chip takes part.
        bytes: Bytes of the whole arrays that are reduced, gathered or scattered on a chip, summed over all times.
    """

    kind: str
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Fusion:
    """An instruction with estimated cycles.

    Attributes:
        name: Name in the compiled text.
        source: Place in the traced program that it comes from.
        cycles: Estimated cycles of one execution.
        times: Executions per step.
    """

    name: str
    source: str
    cycles: int
    times: int


@dataclasses.dataclass(frozen=True)
class _Execution:
    """An instruction that a step executes `times` times, alone or `fused` with others into one instruction."""

    instruction: Instruction
    operands: tuple[Instruction, ...]
    times: int
    fused: bool
    computation: str

    @property
    def collective(self) -> str:
        """One of COLLECTIVES, or '' for another instruction."""
        # The TPU compiler uses this name where each chip keeps a part of a reduction. The links carry only these parts.
        if self.fused and self.computation.startswith('all-reduce-scatter'):
            return 'reduce-scatter' if self.instruction.opcode == 'all-reduce' else ''
        kind = self.instruction.opcode.removesuffix('-start')
        return kind if kind in COLLECTIVES else ''

    @property
    def operand_bytes(self) -> int:
        return sum(operand.result_bytes for operand in self.operands)


class Hlo:
    """The computations of a compiled program. Loops count as often as the compiler knows that they run.

    Args:
        text: Text of the compiled program.

    Raises:
        ValueError: The text holds no main computation.
    """

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry = ''
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if heading := _COMPUTATION.match(line):
                current = self._computations.setdefault(heading.group(2), {})
                self._entry = heading.group(2) if heading.group(1) else self._entry
            elif found := _INSTRUCTION.match(line):
                instruction = _read(*found.groups())
                current[instruction.name] = instruction
        if not self._entry:
            raise ValueError('no ENTRY in the text of the compiled program')

    def collectives(self) -> list[Collective]:
        """Sums the communication of a step by kind, in the order of COLLECTIVES. Kinds that do not occur are left out.

        An asynchronous collective consists of several instructions (start, done, parts fused into other work). They
        share one channel and one size, and count once. Collectives that the compiler has combined share a channel too.
        """
        seen: dict[tuple[str, str, int], tuple[int, int]] = {}
        for execution in self._executed(self._entry):
            kind = execution.collective
            if kind:
                channel = _CHANNEL.search(execution.instruction.attributes)
                key = channel.group(1) if channel else execution.instruction.name
                size = _collective_bytes(execution)
                seen.setdefault((kind, key, size), (execution.times, execution.times * size))
        counts = {kind: [value for (other, *_), value in seen.items() if other == kind] for kind in COLLECTIVES}
        return [
            Collective(kind, sum(times for times, _ in values), sum(size for _, size in values))
            for kind, values in counts.items()
            if values
        ]

    def main_memory_traffic(self) -> int:
        """Counts the bytes that a step reads from the main memory or writes to it.

        Values inside of a fusion do not count. Copies between the main memory and the chip count once. An operand
        counts completely even if only a part is read. The padding of an array to whole tiles does not count.
        """
        return sum(
            execution.times * _traffic(execution) for execution in self._executed(self._entry) if not execution.fused
        )

    def fusions(self) -> list[Fusion]:
        """Returns all instructions with estimated cycles, the costliest per step first."""
        found = [
            Fusion(instruction.name, instruction.source, instruction.cycles, execution.times)
            for execution in self._executed(self._entry)
            if (instruction := execution.instruction).cycles
        ]
        return sorted(found, key=lambda fusion: -fusion.cycles * fusion.times)

    def _executed(self, computation: str, times: int = 1, fused: bool = False) -> Iterator[_Execution]:
        """Yields the instructions of a computation and of all computations that it calls."""
        instructions = self._computations[computation]
        for instruction in instructions.values():
            operands = tuple(instructions[name] for name in instruction.operands if name in instructions)
            yield _Execution(instruction, operands, times, fused, computation)
            rounds = times * self._trips(instruction) if instruction.opcode == 'while' else times
            for called in _called(instruction):
                if called in self._computations:
                    yield from self._executed(called, rounds, fused or instruction.opcode == 'fusion')

    def _trips(self, loop: Instruction) -> int:
        """Number of rounds of a loop.

        It is the number that the compiler notes, or else the only constant of the loop's condition, or else 1.
        """
        if noted := _TRIPS.search(loop.attributes):
            return int(noted.group(1))
        condition = _CONDITION.search(loop.attributes)
        assert condition is not None, f'a loop without a condition: {loop.attributes}'
        instructions = [execution.instruction for execution in self._executed(condition.group(1))]
        constants = {each.arguments for each in instructions if each.opcode == 'constant' and each.arguments.isdigit()}
        return int(constants.pop()) if len(constants) == 1 else 1


def _read(name: str, kind: str, opcode: str, rest: str) -> Instruction:
    arguments, _, attributes = rest.partition(')')
    return Instruction(name, opcode, type_bytes(kind), type_bytes(kind, main=True), arguments, attributes)


def type_bytes(kind: str, main: bool = False) -> int:
    """Counts the bytes of a type.

    Args:
        kind: Type in the compiled text. A tuple counts as the sum of its parts.
        main: Whether to count only arrays in the main memory.

    Example:
        >>> type_bytes('f32[128,64]{1,0:T(8,128)}')
        32768
    """
    return sum(
        _bits(dtype) * math.prod(map(int, filter(None, sides.split(',')))) // 8
        for dtype, sides, elsewhere in _ARRAY.findall(kind)
        if not (main and elsewhere)
    )


def _bits(dtype: str) -> int:
    width = re.search(r'\d+', dtype)
    return 8 if dtype == 'pred' else int(width.group()) if width else 0


def _called(instruction: Instruction) -> list[str]:
    """Computations that run with the instruction.

    The function that a reduction applies to pairs of numbers does not count.
    """
    names = _CALLED.findall(instruction.attributes)
    if instruction.opcode == 'call':
        names += _APPLIED.findall(instruction.attributes)
    if branches := _BRANCHES.search(instruction.attributes):
        names += re.findall(r'[\w.-]+', branches.group(1))
    return names


def _collective_bytes(execution: _Execution) -> int:
    """Bytes of the whole array of a collective, which is the result of a gather or the operand of a scatter."""
    result_bytes = execution.instruction.result_bytes
    # The value of these instructions holds the operand and the result.
    if execution.instruction.opcode in ('all-gather-start', 'collective-permute-start'):
        result_bytes -= execution.operand_bytes
    return max(result_bytes, execution.operand_bytes)


def _traffic(execution: _Execution) -> int:
    instruction = execution.instruction
    # The other side of an asynchronous copy is on the chip.
    if instruction.opcode in ('copy-done', 'slice-done'):
        return instruction.result_bytes
    if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith(('-start', '-done')):
        return 0
    return instruction.main_bytes + sum(operand.main_bytes for operand in execution.operands)

"""EfficientNet and MobileNetV3: torchvision's numbers, published sizes, and what every encoder must do."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from simclr_jax.interop.torch_names import encoder_names, from_torch, probe_names
from simclr_jax.models.efficientnet import EfficientNet
from simclr_jax.models.inverted import Block, InvertedStage, divisible, drops_of, encode, left_out
from simclr_jax.models.mobilenet import MobileNet
from simclr_jax.planning.flops import count_flops
from simclr_jax.sharding import by_rows, make_mesh
from simclr_jax.training import optim
from support.reference_networks import COMPILER_OPTIONS
from support.weights import images_by_rule, share, torch_value

ENCODERS = {'torch_efficientnet_b0': EfficientNet('b0'), 'torch_mobilenet_v3_large': MobileNet('large')}
# The smallest networks of each kind.
TINY = EfficientNet('b0', width=0.125, stem='cifar'), MobileNet('small', width=0.125, stem='cifar')
ids = {'ids': lambda value: getattr(value, 'title', '')}


@functools.cache
def shapes_of(encoder, size=32, train=False):
    """Shapes of the representation, of the maps and of all variables."""
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    apply = functools.partial(encoder.init_with_output, train=train, maps=True)
    return jax.eval_shape(apply, jax.random.key(0), images)


@functools.cache
def variables_of(encoder, dtype):
    """Variables away from their initial values."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ('scale', 'var'):
            return (1 + 0.1 * rng.standard_normal(leaf.shape)).astype(dtype)
        return (rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(encoder)[1])


def drawn(stage, shape):
    """Variables of a stage in float64."""
    init = functools.partial(stage.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros(shape, jnp.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), shapes)


class Computed:
    """What our network computes with the fixture's variables: by mode the representation, maps and statistics."""

    def __init__(self, oracle):
        info = oracle.info
        self.shapes = {entry['name']: entry['shape'] for entry in info['state_dict']}
        momentum, gain = (info['config'][name] for name in ('batch_norm_momentum', 'gain'))
        self.encoder = ENCODERS[oracle.name].clone(batch_norm_momentum=1 - momentum)
        self.names = encoder_names(self.encoder)
        values = {path: from_torch(torch_value(name, self.shapes[name], gain)) for name, path in self.names.items()}
        self.before = values
        variables = {tree: parts['encoder'] for tree, parts in traverse_util.unflatten_dict(values).items()}

        @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
        def compute(variables, even, odd):
            apply = functools.partial(self.encoder.apply, maps=True, mutable=['batch_stats'])
            return apply(variables, odd, train=False), apply(variables, even, train=True)

        found = compute(variables, images_by_rule(3, 64, 64), images_by_rule(3, 65, 65))
        (self.evaluated, _), (self.trained, moved) = jax.device_get(found)
        self.after = traverse_util.flatten_dict(moved)

    def number_of(self, part):
        """torchvision's number of the last layer of one of our parts."""
        named = [name for name, path in self.names.items() if path[2] == part and name.startswith('features')]
        return max(int(name.split('.')[1]) for name in named)

    def places(self, path):
        """Number of values of each channel that a norm saw in training."""
        part, parts = path[1], self.encoder.parts
        at_input = path[2] == 'block1' and path[3] == 'expand_bn'
        shape = self.trained[1][parts[parts.index(part) - 1] if at_input else part].shape
        return np.prod(shape[:3])

    def running(self, name):
        """A running statistic as PyTorch moves it: the variance by the unbiased one of the batch."""
        path = self.names[name]
        old, new = self.before[path], self.after[path[:1] + path[2:]]
        if path[-1] == 'mean':
            return new
        kept = self.encoder.batch_norm_momentum * old
        count = self.places(path[1:])
        return kept + (new - kept) * count / (count - 1)


@functools.cache
def computed(name, oracle):
    return Computed(oracle(name))


@pytest.fixture(scope='module', params=ENCODERS)
def reference(request, oracle):
    return oracle(request.param), computed(request.param, oracle)


def test_every_variable_of_torchvision_has_its_place(reference):
    oracle, ours = reference
    counted = {name for name in ours.shapes if not name.endswith('num_batches_tracked')}
    assert counted == ours.names.keys() | probe_names(ours.encoder).keys()
    expected = {path: from_torch(np.zeros(ours.shapes[name])).shape for name, path in ours.names.items()}
    shapes = traverse_util.flatten_dict(shapes_of(ENCODERS[oracle.name])[1])
    assert {(path[0], 'encoder', *path[1:]): leaf.shape for path, leaf in shapes.items()} == expected
    for entry in oracle.info['state_dict']:
        if 'l2' in entry:
            value = torch_value(entry['name'], entry['shape'], oracle.info['config']['gain'])
            assert np.linalg.norm(np.float64(value)) == pytest.approx(entry['l2'], rel=1e-6)


def test_maps_and_representations_are_those_of_torchvision(reference):
    oracle, ours = reference
    output = 'penultimate' if isinstance(ours.encoder, MobileNet) else 'h'
    for place, (h, maps) in {'eval/65x65': ours.evaluated, 'train/64x64': ours.trained}.items():
        found = {f'{place}/{output}': h, f'{place}/h': maps['top'].mean((1, 2))}
        for part in ours.encoder.parts:
            name = f'{place}/features.{ours.number_of(part)}'
            found |= {f'{name}_hwmean': maps[part].mean((1, 2)), f'{name}_cmean': maps[part].mean(3)}
        for name, value in found.items():
            # Float32 against float64: about 2e-6 in inference mode, 2e-5 with batch statistics of few values.
            assert share(oracle.pick(name, value), oracle[name]) < 1e-4, name


def test_running_statistics_are_those_of_torchvision(reference):
    oracle, ours = reference
    values = [np.asarray(ours.running(name)) for name in oracle.info['running_statistics_order']]
    spread = np.stack([value[np.arange(4) * value.size // 4] for value in values])
    named = {'running_l2': np.asarray([np.linalg.norm(value) for value in values]), 'running_spread4': spread}
    for place, norm in oracle.info['first_and_last_bn'].items():
        named |= {f'{place}_running_{kind}': ours.running(f'{norm}.running_{kind}') for kind in ('mean', 'var')}
    for name, value in named.items():
        name = f'train/64x64/{name}'
        assert share(oracle.pick(name, value), oracle[name]) < 1e-4, name


# Parameters of torchvision's networks with 1000 classes, less those of the last layer. Multiplications of the papers:
# 1905.11946, table 2, and 1905.02244, tables 3 and 4.
@pytest.mark.parametrize(
    'encoder, size, parameters, millions',
    [
        (EfficientNet('b0'), 224, 5_288_548 - 1_281_000, 390),
        pytest.param(EfficientNet('b1'), 240, 7_794_184 - 1_281_000, 700, marks=pytest.mark.slow),
        pytest.param(MobileNet('large'), 224, 5_483_032 - 1_281_000, 219, marks=pytest.mark.slow),
        (MobileNet('small'), 224, 2_542_856 - 1_025_000, 56),
    ],
    **ids,
)
def test_sizes_are_the_published_ones(encoder, size, parameters, millions):
    variables = shapes_of(encoder)[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == parameters
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    program = jax.make_jaxpr(functools.partial(encoder.apply, train=False))(variables, images)
    # The counts of the papers have two or three digits, and differ in what they leave out.
    assert count_flops(program.jaxpr) / 2e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize(
    'encoder, size, sides, channels',
    [
        (EfficientNet('b0'), 32, [32, 32, 32, 16, 8, 8, 4, 4, 4], [32, 16, 24, 40, 80, 112, 192, 320, 1280]),
        pytest.param(
            EfficientNet('b1'),
            240,
            [120, 120, 60, 30, 15, 15, 8, 8, 8],
            [32, 16, 24, 40, 80, 112, 192, 320, 1280],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            MobileNet('large'),
            32,
            [32, 32, 32, 16, 8, 8, 4, 4],
            [16, 16, 24, 40, 80, 112, 160, 960],
            marks=pytest.mark.slow,
        ),
        (MobileNet('small'), 224, [112, 56, 28, 14, 14, 7, 7], [16, 16, 24, 40, 48, 96, 576]),
        (MobileNet('small'), 32, [32, 32, 16, 8, 8, 4, 4], [16, 16, 24, 40, 48, 96, 576]),
    ],
    **ids,
)
def test_maps_have_the_names_of_the_parts(encoder, size, sides, channels):
    encoder = encoder.clone(stem='cifar' if size <= 32 else 'imagenet')
    (h, maps), variables = shapes_of(encoder, size)
    assert h.shape == (2, encoder.feature_width)
    expected = {name: (2, side, side, width) for name, side, width in zip(encoder.parts, sides, channels, strict=True)}
    assert {name: found.shape for name, found in maps.items()} == expected
    assert variables['params'].keys() == set(encoder.parts)


@pytest.mark.parametrize('encoder', TINY, **ids)
def test_bfloat16_reaches_every_part(encoder):
    (h, maps), variables = shapes_of(encoder.clone(dtype=jnp.bfloat16), train=True)
    assert {found.dtype for found in maps.values()} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves((h, variables))} == {jnp.dtype('float32')}


@pytest.mark.parametrize('encoder', TINY, **ids)
def test_all_but_norms_decays(encoder):
    params = shapes_of(encoder)[1]['params']
    mask = traverse_util.flatten_dict(optim._all_but_norms(params), sep='/')
    assert {path for path, decays in mask.items() if not decays} == {path for path in mask if '_bn/' in path} | {
        f'{part}/bn/{name}' for part in ('stem', 'top') for name in ('scale', 'bias')
    }


class Small(nn.Module):
    """An encoder of three parts, as the others make theirs."""

    remat: tuple[int, ...] = ()
    stem_channels: int = 4
    stem_stride: int = 2
    top_channels: int = 8
    activation: str = 'hard_swish'
    batch_norm_epsilon: float = 1e-5
    batch_norm_momentum: float = 0.9
    output_stride: int = 32
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    def blocks(self):
        return (tuple(Block(3, 8, 4, strides, 2, 'relu', 'swish', 'hard_sigmoid') for strides in (2, 1)),)

    @nn.compact
    def __call__(self, x, *, train, frozen=0, maps=False):
        return encode(self, x, hidden=6, train=train, frozen=frozen, maps=maps)


def gradients(encoder, images, frozen=0):
    """Gradients of a sum of squares of h in training mode, and the moved statistics."""

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def compute(variables, images):
        def loss(params):
            variables_ = {**variables, 'params': params}
            h, moved = encoder.apply(variables_, images, train=True, frozen=frozen, mutable=['batch_stats'])
            return jnp.square(h - 1).sum(), moved['batch_stats']

        return jax.grad(loss, has_aux=True)(variables['params'])

    return jax.device_get(compute(variables_of(encoder, images.dtype), images))


# The whole networks take half a minute to compile.
@pytest.mark.parametrize('encoder', [Small(), *(pytest.param(encoder, marks=pytest.mark.slow) for encoder in TINY)])
def test_frozen_parts_have_no_gradient_and_keep_their_statistics(encoder):
    found, moved = gradients(encoder, images_by_rule(4, 8, 8), frozen=2)
    before = variables_of(encoder, np.float32)['batch_stats']
    for part in found:
        alive = any(bool(leaf.any()) for leaf in jax.tree.leaves(found[part]))
        same = all(jax.tree.leaves(jax.tree.map(np.array_equal, moved[part], before[part])))
        is_frozen = part in ('stem', 'stage1')
        assert (alive, same) == (not is_frozen, is_frozen), part


@pytest.mark.parametrize(
    'encoder, recomputing',
    [
        (Small(), Small(remat=(1,))),
        *(pytest.param(encoder, encoder.clone(remat=(1, 2, 3, 4, 5)), marks=pytest.mark.slow) for encoder in TINY),
    ],
)
def test_recomputing_on_eight_devices_is_computing_on_one(encoder, recomputing, x64):
    images = images_by_rule(8, 8, 8).astype(np.float64)
    expected = gradients(encoder, images)
    found = gradients(recomputing, jax.device_put(images, by_rows(make_mesh())))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Float64 sums in another order, amplified by batch norms of few values.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * largest)


def test_denser_maps_have_the_same_parameters():
    encoder = TINY[1].clone(stem='imagenet')
    (_, maps), variables = shapes_of(encoder.clone(output_stride=8), 64)
    assert variables == shapes_of(encoder, 64)[1]
    assert [maps[part].shape[1] for part in encoder.parts[-3:]] == [8, 8, 8]
    with pytest.raises(ValueError, match="output_stride=1: stem='imagenet' allows 2, 4, 8, 16, 32"):
        encoder.clone(output_stride=1)


def test_the_strided_map_lies_in_the_dilated_one(x64):
    blocks = tuple(Block(5, 8, 4, strides, 0, 'hard_swish', 'relu', 'sigmoid') for strides in (2, 1))
    strided, dilated = (
        InvertedStage(blocks, (0.0, 0.0), strides, dilations, jnp.float32)
        for strides, dilations in ((2, (1, 1)), (1, (1, 2)))
    )
    x = np.random.default_rng(0).uniform(size=(2, 9, 11, 4))
    variables = drawn(strided, x.shape)
    coarse, dense = (jax.jit(functools.partial(stage.apply, train=False))(variables, x) for stage in (strided, dilated))
    np.testing.assert_allclose(dense[:, ::2, ::2], coarse, rtol=1e-9)


@pytest.mark.parametrize('channels, rounded', [(1, 8), (8, 8), (11.9, 16), (12, 16), (90, 88), (18, 24), (184, 184)])
def test_channels_are_multiples_of_eight_that_lose_at_most_a_tenth(channels, rounded):
    assert divisible(channels) == rounded


class TestStochasticDepth:
    def test_the_chance_grows_with_the_block(self):
        """1603.09382, equation 4, with torchvision's count: the first block always stays."""
        drops = drops_of(EfficientNet('b0').blocks(), 0.2)
        assert [len(stage) for stage in drops] == [1, 2, 2, 3, 3, 4, 1]
        np.testing.assert_allclose(np.concatenate(drops), 0.2 * np.arange(16) / 16)

    def test_an_image_is_left_out_as_a_whole_and_the_mean_stays(self):
        found = np.asarray(left_out(jnp.ones((4000, 2, 3)), 0.25, jax.random.key(0)))
        assert set(np.unique(found)) == {0, np.float32(1 / 0.75)}
        assert (found == found[:, :1, :1]).all()
        # The standard deviation of the mean is sqrt(0.25 / 0.75 / 4000), 0.9 %.
        assert found.mean() == pytest.approx(1, abs=0.04)

    def test_eight_devices_draw_what_one_draws(self):
        x, key = jnp.ones((64, 2)), jax.random.key(1)
        draw = jax.jit(functools.partial(left_out, probability=0.5))
        spread = draw(jax.device_put(x, by_rows(make_mesh())), key=key)
        np.testing.assert_array_equal(spread, draw(x, key=key))


def test_only_training_of_an_encoder_that_drops_needs_random_numbers():
    encoder = TINY[1]
    variables, images = shapes_of(encoder)[1], jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def program(encoder, **settings):
        apply = functools.partial(encoder.apply, train=True, mutable=['batch_stats'], **settings)
        return str(jax.make_jaxpr(apply)(variables, images))

    dropping = encoder.clone(stochastic_depth=0.2, dropout=0.1)
    assert (encoder.is_random, dropping.is_random) == (False, True)
    assert 'random' not in program(encoder)
    assert 'random' not in program(dropping, frozen=len(encoder.parts))
    assert 'random' in program(dropping, rngs={'dropout': jax.random.key(0)})


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: EfficientNet('b9'), r"variant='b9' is unknown; choose one of \('b0', 'b1'\)"),
        (lambda: MobileNet('tiny'), r"variant='tiny' is unknown; choose one of \('large', 'small'\)"),
        (lambda: EfficientNet(stem='tiny'), "stem='tiny' is unknown"),
        (lambda: MobileNet(width=0), 'width=0 must be positive'),
        (lambda: shapes_of(TINY[0].clone(mean=(0.5, 0.5, 0.5))), 'set both or neither'),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

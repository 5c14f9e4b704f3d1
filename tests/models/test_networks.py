"""Properties of the networks that need no reference: sizes, names, precision, heads, batch normalisation."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.blocks import ResidualBlock, _mean_pool_2x2
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.layers import Conv, dense
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.simclr import SimCLR


def shapes_of(model, image_shape=(1, 32, 32, 3)):
    """Shapes of all variables, by path."""
    initial = jax.eval_shape(lambda key: model.init(key, jnp.zeros(image_shape), train=False), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(initial).items()}


def parameter_count(model):
    return sum(int(np.prod(shape)) for path, shape in shapes_of(model).items() if path[0] == 'params')


@pytest.fixture(scope='module')
def small():
    """A narrow model with all its parts, variables that differ from its initial ones, and images for it."""
    model = SimCLR(ResNet(18, width=0.125), ProjectionHead(layers=2, out_dim=8), num_classes=5)
    images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
    rng = np.random.default_rng(0)
    values = {
        path: 1 + 0.1 * rng.standard_normal(shape)
        if path[-1] in ('scale', 'var')
        else rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        for path, shape in shapes_of(model, images.shape).items()
    }
    variables = flax.traverse_util.unflatten_dict(values)
    return model, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables), images


# The counts are torchvision's without the classifier. In its basic networks the first stage's shortcut is the identity.
# SimCLR has a 1x1 convolution and a batch norm there. torchvision has no ResNet-200, which is a ResNet-152 with 16 more
# blocks in the second stage.
FIRST_SHORTCUT = 64 * 64 + 2 * 64
SECOND_STAGE_BLOCK = 512 * 128 + 3 * 3 * 128 * 128 + 128 * 512 + 2 * (128 + 128 + 512)


@pytest.mark.parametrize(
    'depth, count',
    [
        (18, 11_176_512 + FIRST_SHORTCUT),
        (34, 21_284_672 + FIRST_SHORTCUT),
        (50, 23_508_032),
        (101, 42_500_160),
        (152, 58_143_808),
        (200, 58_143_808 + 16 * SECOND_STAGE_BLOCK),
    ],
)
def test_parameter_counts(depth, count):
    assert parameter_count(ResNet(depth, stem='imagenet')) == count


@pytest.mark.parametrize(
    'depth, width, sk_ratio, millions',
    [(50, 2, 0, 94), (50, 1, 0.0625, 35), (50, 2, 0.0625, 140), (152, 3, 0.0625, 795)],
)
def test_parameter_counts_of_the_paper(depth, width, sk_ratio, millions):
    # SimCLRv2, table 1.
    model = ResNet(depth, width=width, stem='imagenet', sk_ratio=sk_ratio)
    assert round(parameter_count(model) / 1e6) == millions


@pytest.mark.parametrize('depth, width, features', [(18, 0.25, 128), (18, 0.001, 1), (50, 0.3, 612), (50, 3, 6144)])
def test_representation_width(depth, width, features):
    model = ResNet(depth, width=width)
    h, _ = jax.eval_shape(
        lambda key: model.init_with_output(key, jnp.zeros((2, 32, 32, 3)), train=False), jax.random.key(0)
    )
    assert h.shape == (2, features)
    assert model.feature_width == features


@pytest.mark.parametrize(
    'stem, sk_ratio, size, resolutions',
    [
        ('cifar', 0, 32, [32, 32, 16, 8, 4]),
        ('imagenet', 0, 224, [112, 56, 28, 14, 7]),
        ('imagenet', 0.0625, 224, [112, 56, 28, 14, 7]),
        ('imagenet', 0.0625, 75, [38, 19, 10, 5, 3]),
        ('imagenet', 0, 1, [1, 1, 1, 1, 1]),
    ],
)
def test_feature_maps(stem, sk_ratio, size, resolutions):
    model = ResNet(50, width=0.25, stem=stem, sk_ratio=sk_ratio)

    def maps_of(key):
        images = jnp.zeros((2, size, size, 3))
        return model.init_with_output(key, images, train=False, maps=True)[0]

    h, maps = jax.eval_shape(maps_of, jax.random.key(0))
    assert h.shape == (2, 512)
    assert {name: x.shape for name, x in maps.items()} == {
        name: (2, resolution, resolution, channels)
        for name, resolution, channels in zip(
            ['stem', 'stage1', 'stage2', 'stage3', 'stage4'],
            resolutions,
            [16, 64, 128, 256, 512],
            strict=True,
        )
    }


@pytest.mark.parametrize('sk_ratio, se_ratio', [(0, 0), (0.0625, 0), (0, 0.25)])
@pytest.mark.parametrize('stem', ['cifar', 'imagenet'])
def test_names_tell_batch_norm_from_weights(stem, sk_ratio, se_ratio):
    # Weight decay and trust ratios are masked by these names.
    encoder = ResNet(50, stem=stem, sk_ratio=sk_ratio, se_ratio=se_ratio)
    for path, shape in shapes_of(SimCLR(encoder, ProjectionHead(), num_classes=10)).items():
        *_, module, leaf = path
        if module.startswith('bn') or module.endswith('bn'):
            assert leaf in ('scale', 'bias', 'mean', 'var')
        else:
            assert leaf == 'kernel' if len(shape) > 1 else leaf == 'bias'


def test_names_tell_the_place():
    paths = shapes_of(SimCLR(ResNet(50, sk_ratio=0.0625, se_ratio=0.25), ProjectionHead(), num_classes=10))
    for path in [
        'params/encoder/stem/conv/kernel',
        'params/encoder/stem/bn/scale',
        'params/encoder/stage1/block1/shortcut_conv/kernel',
        'params/encoder/stage1/block1/shortcut_bn/bias',
        'params/encoder/stage2/block4/conv3/kernel',
        'params/encoder/stage3/block6/sk/reduce_bn/scale',
        'params/encoder/stage4/block3/se/expand/bias',
        'batch_stats/encoder/stage4/block3/bn3/var',
        'params/head/dense1/kernel',
        'params/head/bn1/bias',
        'params/head/bn3/scale',
        'params/probe/kernel',
        'params/probe/bias',
    ]:
        assert tuple(path.split('/')) in paths
    assert ('params', 'head', 'bn3', 'bias') not in paths


@pytest.mark.parametrize(
    'head, widths',
    [
        (ProjectionHead(layers=3, out_dim=16), [12, 12, 12, 16]),
        (ProjectionHead(layers=2, out_dim=16, hidden_dim=20), [12, 20, 16]),
        (ProjectionHead('linear', out_dim=16), [12, 16]),
        (ProjectionHead('none'), [12]),
    ],
)
def test_head_returns_every_layer(head, widths):
    h = jax.random.normal(jax.random.key(0), (64, 12))
    variables = head.init(jax.random.key(1), h, train=False)
    layers, _ = jax.jit(lambda v, h: head.apply(v, h, train=True, mutable=['batch_stats']))(variables, h)
    assert [layer.shape for layer in layers] == [(64, width) for width in widths]
    np.testing.assert_array_equal(layers[0], h)
    for hidden in layers[1:-1]:
        assert hidden.min() == 0  # ReLU
    if len(layers) > 1:
        np.testing.assert_allclose(layers[-1].mean(0), 0, atol=1e-6)  # no offset, no ReLU
        assert layers[-1].min() < 0


def test_probe_sends_no_gradient_to_the_encoder(small):
    model, variables, images = small

    @jax.jit
    @jax.grad
    def gradient(params):
        return model.apply(variables | {'params': params}, images, train=False)['logits'].sum()

    gradients = gradient(variables['params'])
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradients['encoder']))
    assert gradients['probe']['kernel'].any()


def test_encode_needs_only_the_encoder(small):
    model, variables, images = small
    encoder_only = {name: {'encoder': collection['encoder']} for name, collection in variables.items()}
    h, maps = jax.jit(lambda v: model.apply(v, images, maps=True, method='encode'))(encoder_only)
    outputs = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    # The two programs may order their sums differently.
    np.testing.assert_allclose(h, outputs['representation'], rtol=1e-5)
    np.testing.assert_allclose(maps['stage4'].mean((1, 2)), h, rtol=1e-5)


def test_bfloat16_stays_close_and_leaves_float32(small):
    model, variables, images = small
    half = SimCLR(model.encoder.copy(dtype=jnp.bfloat16), model.head.copy(dtype=jnp.bfloat16), 5, dtype=jnp.bfloat16)
    expected = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    rounded, moved = jax.jit(lambda v: half.apply(v, images, train=False, mutable=['batch_stats']))(variables)
    for name in ('representation', 'projection', 'logits'):
        assert rounded[name].dtype == jnp.float32
        # About twenty layers, each rounding to 8 bits: sqrt(20) * 2^-9 = 1 %, with room.
        error = np.linalg.norm(rounded[name] - expected[name]) / np.linalg.norm(expected[name])
        assert 0 < error < 0.03
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(moved))


@pytest.mark.parametrize('sk_ratio, se_ratio', [(0.0625, 0), (0, 0.25)])
def test_bfloat16_reaches_every_stage(sk_ratio, se_ratio):
    model = ResNet(50, stem='imagenet', sk_ratio=sk_ratio, se_ratio=se_ratio, dtype=jnp.bfloat16)

    def outputs_of(key):
        images = jnp.zeros((2, 32, 32, 3))
        return model.init_with_output(key, images, train=True, maps=True)

    (h, maps), variables = jax.eval_shape(outputs_of, jax.random.key(0))
    assert {x.dtype for x in maps.values()} == {jnp.dtype('bfloat16')}
    assert {x.dtype for x in jax.tree.leaves((h, variables))} == {jnp.dtype('float32')}


def test_float64_parameters_are_not_rounded(small, x64):
    model, variables, images = small
    double = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
    outputs, moved = jax.eval_shape(lambda v: model.apply(v, images, train=True, mutable=['batch_stats']), double)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, moved))} == {jnp.dtype('float64')}


@pytest.mark.parametrize('bottleneck, sk_ratio, se_ratio', [(False, 0, 0), (True, 0.0625, 0), (True, 0, 0.25)])
def test_blocks_start_as_their_shortcuts(bottleneck, sk_ratio, se_ratio):
    block = ResidualBlock(
        filters=4,
        strides=1,
        bottleneck=bottleneck,
        project=False,
        sk_ratio=sk_ratio,
        se_ratio=se_ratio,
        dtype=jnp.float32,
    )
    x = np.float32(np.random.default_rng(0).normal(size=(2, 3, 3, 16 if bottleneck else 4)))
    y, _ = jax.jit(lambda key: block.init_with_output(key, x, train=True))(jax.random.key(1))
    np.testing.assert_array_equal(y, jnp.maximum(x, 0))


def test_initial_kernels():
    # Standard deviations of 65,536 draws and more: their standard error is 0.3 % at most.
    layer = Conv(128, 3, name='conv', dtype=jnp.float32)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))['params']
    assert np.std(params['kernel']) == pytest.approx(1 / np.sqrt(3 * 3 * 64), rel=0.02)
    # The cut is at two standard deviations of the distribution before the cut.
    assert np.abs(params['kernel']).max() < 2.28 * np.std(params['kernel'])

    layer = dense(256, use_bias=True, dtype=jnp.float32)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 256)))['params']
    assert np.std(params['kernel']) == pytest.approx(0.01, rel=0.02)
    assert not params['bias'].any()


@pytest.mark.parametrize('size, dilation', [(5, 2), (3, 4)])
def test_dilated_mean_pool_counts_only_pixels_that_exist(size, dilation):
    x = np.random.default_rng(0).standard_normal((1, size, size + 1, 2)).astype(np.float32)
    windows = [[x[0, i : i + dilation + 1 : dilation, j : j + dilation + 1 : dilation] for j in range(size + 1)]
               for i in range(size)]  # fmt: skip
    means = np.asarray([[window.mean((0, 1)) for window in row] for row in windows])
    np.testing.assert_allclose(_mean_pool_2x2(jnp.asarray(x), 1, dilation)[0], means, atol=1e-6)


@pytest.mark.parametrize('size', [4, 5])
def test_mean_pool_beyond_the_border(size):
    x = np.random.default_rng(0).standard_normal((1, size, size, 2)).astype(np.float32)
    windows = [[x[0, i : i + 2, j : j + 2] for j in range(size)] for i in range(size)]
    means = np.asarray([[window.mean((0, 1)) for window in row] for row in windows])
    sums = np.asarray([[window.sum((0, 1)) for window in row] for row in windows])
    np.testing.assert_allclose(_mean_pool_2x2(jnp.asarray(x), 1)[0], means, atol=1e-6)
    np.testing.assert_allclose(_mean_pool_2x2(jnp.asarray(x), 2)[0], sums[::2, ::2] / 4, atol=1e-6)


@pytest.mark.parametrize(
    'make, message',
    [
        # Depths 6 and 10 are small networks for tests.
        (lambda: ResNet(20), r'depth=20 is unknown; choose one of \[6, 10, 18, 34, 50, 101, 152, 200\]'),
        (lambda: ResNet(18, stem='tiny'), "stem='tiny' is unknown.*cifar.*imagenet"),
        (lambda: ResNet(18, width=0), 'width=0 must be positive'),
        (lambda: ResNet(18, sk_ratio=0.0625), 'depth=18 has none; choose depth 50'),
        (lambda: ProjectionHead('mlp'), "kind='mlp' is unknown.*nonlinear.*linear.*none"),
        (lambda: ProjectionHead(layers=0), 'layers=0 must be at least 1'),
        (lambda: shapes_of(ResNet(18), (2, 2, 32, 32, 3)), r'reshape views \[B, V, H, W, C\]'),
        (
            lambda: ResNet(18).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8), train=False),
            'uint8.*255',
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

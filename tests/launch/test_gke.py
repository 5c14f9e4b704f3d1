"""launch/gke/: the manifest by the schemas, and jobs through whole lives on a stand-in cluster that obeys it."""

import copy
import functools

import jsonschema
import kubernetes_validate
import pytest
import yaml

from support.stand_ins import AWKWARD, World, jobset

TWO_PODS = ('--name=run', '--image=registry/simclr:1', '--topology=v4:2x2x2')
TRAIN = ('train', '--workdir=gs://bucket/run')


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, 'kubectl')


@pytest.fixture
def gke(root, world):
    return launcher(root, world)


def launcher(root, world):
    (world.state / 'image').symlink_to(root / '.venv' / 'bin')
    return lambda *arguments: world.run(root / 'launch' / 'gke' / 'jobset.sh', *arguments)


@pytest.fixture(scope='module')
def manifest(root, tmp_path_factory):
    """manifest(OPTIONS) -> what render prints, read as YAML."""
    gke = launcher(root, World(tmp_path_factory.mktemp('render')))

    @functools.cache
    def render(*options):
        done = gke('render', *options)
        assert (done.returncode, done.stderr) == (0, '')
        return yaml.safe_load(done.stdout)

    return render


def job_of(manifest):
    (job,) = manifest['spec']['replicatedJobs']
    return job


def pod_of(manifest):
    return job_of(manifest)['template']['spec']['template']['spec']


@pytest.mark.parametrize('spot', [(), ('--spot',)])
def test_the_manifest_obeys_the_schemas(manifest, spot):
    jobset.validate(manifest(*TWO_PODS, *spot, *TRAIN))


@pytest.mark.parametrize(
    'path',
    [
        ('metadata',),
        ('spec',),
        ('spec', 'failurePolicy'),
        ('spec', 'failurePolicy', 'rules', 0),
        ('spec', 'replicatedJobs', 0),
        ('spec', 'replicatedJobs', 0, 'template'),
        ('spec', 'replicatedJobs', 0, 'template', 'spec'),
        ('spec', 'replicatedJobs', 0, 'template', 'spec', 'podFailurePolicy', 'rules', 0),
        ('spec', 'replicatedJobs', 0, 'template', 'spec', 'template', 'spec'),
        ('spec', 'replicatedJobs', 0, 'template', 'spec', 'template', 'spec', 'containers', 0),
        ('spec', 'replicatedJobs', 0, 'template', 'spec', 'template', 'spec', 'containers', 0, 'resources'),
    ],
)
def test_the_schemas_refuse_a_misspelt_field_at_every_depth(manifest, path):
    good = manifest(*TWO_PODS, *TRAIN)
    broken = copy.deepcopy(good)
    place = broken
    for step in path:
        place = place[step]
    field = next(iter(place))
    place[f'{field}s'] = place.pop(field)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        jobset.validate(broken)
    jobset.validate(good)


@pytest.mark.parametrize(
    'topology, accelerator, shape, hosts, chips',
    [
        ('v4:2x2x1', 'tpu-v4-podslice', '2x2x1', 1, 4),
        ('v4:2x4x4', 'tpu-v4-podslice', '2x4x4', 8, 4),
        ('v5e:2x2', 'tpu-v5-lite-podslice', '2x2', 1, 4),
        ('v5e:2x4', 'tpu-v5-lite-podslice', '2x4', 1, 8),
        ('v5e:16x16', 'tpu-v5-lite-podslice', '16x16', 64, 4),
        ('v5p:4x4x4', 'tpu-v5p-slice', '4x4x4', 16, 4),
        ('v6e:1x1', 'tpu-v6e-slice', '1x1', 1, 1),
        ('v6e:4x8', 'tpu-v6e-slice', '4x8', 8, 4),
    ],
)
def test_a_slice_is_so_many_pods_of_so_many_chips(manifest, topology, accelerator, shape, hosts, chips):
    found = manifest('--name=run', '--image=i', '--slices=3', f'--topology={topology}', *TRAIN)
    assert job_of(found)['replicas'] == 3
    spec = job_of(found)['template']['spec']
    assert (spec['completions'], spec['parallelism'], spec['completionMode']) == (hosts, hosts, 'Indexed')
    assert pod_of(found)['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': accelerator,
        'cloud.google.com/gke-tpu-topology': shape,
    }
    resources = pod_of(found)['containers'][0]['resources']
    assert resources == {'requests': {'google.com/tpu': chips}, 'limits': {'google.com/tpu': chips}}


def test_spot_nodes_only_where_asked_for(manifest):
    with_spot, without = manifest(*TWO_PODS, '--spot', *TRAIN), manifest(*TWO_PODS, *TRAIN)
    assert pod_of(with_spot)['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
    assert [toleration['key'] for toleration in pod_of(with_spot)['tolerations']] == ['cloud.google.com/gke-spot']
    assert 'spot' not in str(without)


def test_labels_selectors_and_variables_only_where_asked_for(manifest):
    options = ('--label=team=vision', '--node-selector=cloud.google.com/reservation-name=mine', '--env=A=$(B) $C')
    found, without = manifest(*TWO_PODS, *options, *TRAIN), manifest(*TWO_PODS, *TRAIN)
    jobset.validate(found)
    pod = job_of(found)['template']['spec']['template']
    assert found['metadata']['labels'] == pod['metadata']['labels'] == {'team': 'vision'}
    assert pod['spec']['nodeSelector']['cloud.google.com/reservation-name'] == 'mine'
    assert 'labels' not in without['metadata']
    assert 'env' not in pod_of(without)['containers'][0]


def test_names_that_look_like_numbers_stay_names(manifest):
    assert manifest('--name=123', '--image=1.5', '--topology=v4:2x2x1', *TRAIN)['metadata']['name'] == '123'


def ended(world):
    return tuple(world.records('calls')[-1][1:])


def test_a_job_from_submission_to_its_end(world, gke):
    arguments = [*AWKWARD, '$(KUBERNETES_SERVICE_HOST)', '${name}', '😀']
    done = gke('apply', *TWO_PODS, '--slices=2', *arguments)
    assert (done.returncode, ended(world)) == (0, ('Completed', 0)), done.stderr
    runs = world.records('runs')
    assert sorted(run['process'] for run in runs) == ['0', '1', '2', '3']
    assert all(run['arguments'] == arguments for run in runs)


def test_options_of_kubectl_and_variables_pass_through(world, gke):
    gke(
        'apply',
        '--name=run',
        '--image=i',
        '--topology=v5e:1x1',
        '--platform=--context=mine',
        '--env=JAX_A=$(x) $y',
        *TRAIN,
    )
    assert '--context=mine' in world.records('calls')[0]
    assert world.records('runs')[0]['variables'] == {'JAX_A': '$(x) $y'}


@pytest.mark.parametrize('event', [42, 'kill', 'preempt'])
def test_the_job_is_restarted_after_an_end_that_this_mends(world, gke, event):
    world.plan(p0=[event, 0])
    gke('apply', *TWO_PODS, *TRAIN)
    assert ended(world) == ('Completed', 1)


def test_a_disruption_counts_as_one_whatever_the_exit_code(world, gke):
    world.plan(p0=['preempt and fail', 0])
    gke('apply', *TWO_PODS, *TRAIN)
    assert ended(world) == ('Completed', 1)


@pytest.mark.parametrize('code', [1, 2, 127])
def test_the_job_fails_for_good_after_a_failure(world, gke, code):
    world.plan(p1=[code], p0=['save'])
    gke('apply', *TWO_PODS, *TRAIN)
    assert ended(world) == ('Failed', 0)


def test_restarts_have_a_limit(world, gke):
    world.plan(p0=[42])
    gke('apply', *TWO_PODS, '--restarts=2', *TRAIN)
    assert ended(world) == ('Failed', 2)


def test_the_other_commands_speak_of_the_same_job(world, gke):
    for command in ('status', 'logs', 'delete'):
        done = gke(command, '--name=run', '--namespace=team')
        assert (done.returncode, done.stderr) == (0, '')
    calls = world.records('calls')
    assert [call[1] for call in calls] == ['get', 'get', 'logs', 'delete']
    assert all('--namespace=team' in call and 'run' in ' '.join(call) for call in calls)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), 'unknown command'),
        (('apply', '--name=run', '--topology=v4:2x2x1', *TRAIN), '--image=... is needed'),
        (('apply', *TWO_PODS, '--spott', *TRAIN), 'there is no option --spott'),
        (('apply', *TWO_PODS, 'train', '--workdir=/data'), 'needs --workdir=gs://BUCKET'),
        (
            ('apply', '--name=run', '--image=i', '--topology=v5e:4x9', *TRAIN),
            '--topology=v5e:4x9: no such slice is offered',
        ),
        (('apply', *TWO_PODS, '--label=team', *TRAIN), '--label=team must be --label=NAME=VALUE'),
        (('xpk', *TWO_PODS, *TRAIN), '--cluster=... is needed'),
        (('xpk', *TWO_PODS, '--cluster=c', '--label=a=b', *TRAIN), 'xpk takes no --label'),
    ],
)
def test_mistakes_are_told(world, gke, arguments, message):
    done = gke(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert world.records('calls') == []

"""The schema of a JobSet: the envelope as its documentation has it, Job and Pod by the schemas of Kubernetes."""

import jsonschema
import kubernetes_validate

# https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/
NAME = {'type': 'string', 'pattern': '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$', 'maxLength': 63}
TEXTS = {'type': 'object', 'additionalProperties': {'type': 'string'}}
TEXT, NUMBER, SWITCH = {'type': 'string'}, {'type': 'integer', 'minimum': 0}, {'type': 'boolean'}


def _fields(required: str = '', **properties) -> dict:
    """An object of these fields and no others."""
    return {'type': 'object', 'properties': properties, 'required': required.split(), 'additionalProperties': False}


def _list(items: dict) -> dict:
    return {'type': 'array', 'items': items}


FAILURE_RULE = _fields(
    'name action',
    name={'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'},
    action={'enum': ['FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts']},
    onJobFailureReasons=_list(
        {
            'enum': [
                'BackoffLimitExceeded',
                'DeadlineExceeded',
                'FailedIndexes',
                'MaxFailedIndexesExceeded',
                'PodFailurePolicy',
            ]
        }
    ),
    targetReplicatedJobs=_list(TEXT),
)
REPLICATED_JOB = _fields(
    'name template',
    name=NAME,
    groupName=TEXT,
    replicas=NUMBER,
    dependsOn=_list(_fields('name status', name=TEXT, status={'enum': ['Ready', 'Complete']})),
    template=_fields('spec', metadata=_fields(labels=TEXTS, annotations=TEXTS), spec={'type': 'object'}),
)
SCHEMA = _fields(
    'apiVersion kind metadata spec',
    apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
    kind={'const': 'JobSet'},
    metadata=_fields('name', name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS),
    spec=_fields(
        'replicatedJobs',
        replicatedJobs={**_list(REPLICATED_JOB), 'minItems': 1},
        network=_fields(enableDNSHostnames=SWITCH, subdomain=TEXT, publishNotReadyAddresses=SWITCH),
        successPolicy=_fields('operator', operator={'enum': ['All', 'Any']}, targetReplicatedJobs=_list(TEXT)),
        failurePolicy=_fields(
            maxRestarts=NUMBER, restartStrategy={'enum': ['Recreate', 'BlockingRecreate']}, rules=_list(FAILURE_RULE)
        ),
        startupPolicy=_fields('startupPolicyOrder', startupPolicyOrder={'enum': ['AnyOrder', 'InOrder']}),
        suspend=SWITCH,
        coordinator=_fields('replicatedJob', replicatedJob=TEXT, jobIndex=NUMBER, podIndex=NUMBER),
        managedBy=TEXT,
        ttlSecondsAfterFinished=NUMBER,
    ),
)


def validate(manifest: dict) -> None:
    """Raises where a field is unknown, missing or of the wrong kind."""
    jsonschema.validate(manifest, SCHEMA)
    for job in manifest['spec']['replicatedJobs']:
        kubernetes_validate.validate(
            {
                'apiVersion': 'batch/v1',
                'kind': 'Job',
                'metadata': {'name': job['name']},
                'spec': job['template']['spec'],
            },
            '1.32',
            strict=True,
        )

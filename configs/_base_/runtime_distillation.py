"""What every distillation config shares: scope, hooks, logging."""

custom_imports = dict(imports=['mmivit'], allow_failed_imports=False)
default_scope = 'mmengine'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmivit.SafeCheckpointHook', by_epoch=False, interval=1000, max_keep_ckpts=3
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # An interrupted run goes on as if it had not been: docs/reliability.md.
    seed=dict(type='mmivit.SeedHook'),
    loss=dict(type='mmivit.FiniteLossHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False

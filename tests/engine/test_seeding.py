"""Random numbers by position: a resumed run draws what the uninterrupted one does."""

from itertools import islice

import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader

from mmivit.engine.seeding import SeededBatchSampler
from tests.toy_training import Draws, run


@DATA_SAMPLERS.register_module()
class Twice(BatchSampler):
    """Every index twice in a batch; once only, as one that keeps images for its next batch."""

    begun = False

    def __iter__(self):
        assert not self.begun
        self.begun = True
        yield from ([index, index] for index in self.sampler)


def draw(loader, count=None):
    """Index and random numbers of the samples of the first batches."""
    return [[s['inputs'].tolist() for s in batch] for batch in islice(loader, count)]


def loader(sampler=DefaultSampler, workers=0, **options):
    dataset = Draws()
    return DataLoader(
        dataset,
        batch_sampler=SeededBatchSampler(sampler(dataset, seed=3), 3, **options),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list,
    )


def epochs(workers):
    batches = loader(workers=workers)
    for epoch in range(2):
        batches.batch_sampler.sampler.set_epoch(epoch)
        yield draw(batches)


def test_samples_do_not_depend_on_the_workers_that_load_them():
    drawn = list(epochs(workers=0))
    assert drawn == list(epochs(workers=2))
    numbers = [n for epoch in drawn for batch in epoch for _, *three in batch for n in three]
    assert len(set(numbers)) == len(numbers) == 2 * 12 * 3


@pytest.mark.parametrize('workers', [0, 2])
def test_an_endless_sampler_starts_anywhere(workers):
    expected = draw(loader(InfiniteSampler), 12)
    later = loader(InfiniteSampler, workers)
    next(iter(later))  # has read ahead
    for start in (0, 1, 7):
        later.batch_sampler.start = start
        assert draw(later, 5) == expected[start : start + 5]


def test_batches_are_those_of_another_batch_sampler():
    twice = loader(batch_sampler=dict(type='Twice'))
    assert len(twice) == 4
    assert draw(twice) == draw(twice)
    for (first, *one), (second, *other) in draw(twice):
        assert first == second
        assert one != other


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_repeats_the_losses(by_epoch, workers, tmp_path):
    whole = run(tmp_path / 'whole', 12, by_epoch)  # with a seed of its own choice
    last = tmp_path / 'whole' / ('epoch_1.pth' if by_epoch else 'iter_9.pth')
    step = 4 if by_epoch else 9
    resumed = run(tmp_path / 'part', 12, by_epoch, workers, resume=True, load_from=str(last))
    assert resumed == {number: whole[number] for number in range(step + 1, 13)}


def test_a_config_without_the_batch_sampler_is_told(tmp_path, capsys):
    run(tmp_path, 1, batch_sampler=None)
    assert 'mmivit.SeededBatchSampler' in capsys.readouterr().out

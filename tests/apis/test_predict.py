"""predict.py and strangers' names and links. The networks are tested elsewhere."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmivit.apis import predict_files
from mmivit.apis.images import find_images
from mmivit.apis.inferencers import Prediction
from mmivit.apis.predict import predict
from mmivit.apis.predict_processes import share_size
from mmivit.apis.videos import Video, written_video
from mmivit.datasets.loaders import ImagePipeline
from mmivit.errors import LaunchError


class Blind:
    def __init__(self, *args):
        self.pipeline = ImagePipeline([dict(type='LoadImageFromFile')], None)

    def __call__(self, batch, steady=False):
        return [Prediction(each.sample['img'], dict(detections=[])) for each in batch]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """predict() on ``photos``, with a network that finds nothing."""
    config = "default_scope = 'mmdet'\ntest_dataloader = dict(dataset=dict(type='CocoDataset'))\n"
    (tmp_path / 'config.py').write_text(config)
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'photos' / 'a.png')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict_files, 'Detector', Blind)
    return lambda **options: predict('config.py', 'x.pth', ['photos'], 'out', **options)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob('*') if not p.is_dir())


def test_the_config_is_overridden(run):
    with pytest.raises(LaunchError, match="default_scope is 'mmpretrain'"):
        run(cfg_options=dict(default_scope='mmpretrain'))


def test_any_name_is_written_below_out(run):
    names = [
        '-rf.png',
        'a\nb\x1b[31m.png',
        os.fsdecode(b'\xff\xfe.png'),
        ' .png',
        '....png',
        '$(x).png',
    ]
    for name in names:
        Path('photos', name).write_bytes(Path('photos/a.png').read_bytes())
    before = tree('.')
    report = run()
    assert not report.failed
    new = set(tree('.')) - set(before)
    assert len(new) == 2 * (len(names) + 1) + 1  # and the report
    assert all(path.startswith('out/') for path in new)
    for path in new:
        if path.endswith('.json'):
            assert json.loads(Path(path).read_text())['width'] == 40


def test_a_name_too_long_fails_alone(run):
    Path('photos', 'n' * 250 + '.png').write_bytes(Path('photos/a.png').read_bytes())
    report = run()
    assert [path.name for path in report.written] == ['a.png']
    assert next(iter(report.failed.values())).startswith('[Errno 36]')


def test_links_among_the_photos_are_not_climbed(run):
    Path('private').mkdir()
    Path('private/secret.png').write_bytes(Path('photos/a.png').read_bytes())
    Path('photos/up').symlink_to('../private')
    assert [path.name for path in run().written] == ['a.png']


@pytest.mark.parametrize('link', ['out/pictures', 'out/predictions', 'out/pictures/deep'])
def test_links_out_of_out_are_refused(link, run):
    Path('photos/deep').mkdir()
    Path('photos/deep/b.png').write_bytes(Path('photos/a.png').read_bytes())
    Path('elsewhere').mkdir()
    Path(link).parent.mkdir(parents=True)
    Path(link).symlink_to(Path('elsewhere').resolve())
    with pytest.raises(PermissionError, match='a link out of out'):
        run(force=True)
    assert not os.listdir('elsewhere')


def test_links_left_where_files_go_are_replaced_not_followed(run):
    Path('precious').write_text('mine')
    for name in ('a.png.jpg', '.a.png.jpg.partial'):
        link = Path('out/pictures', name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path('precious').resolve())
    with pytest.raises(FileExistsError):
        run()
    run(force=True)
    assert Path('precious').read_text() == 'mine'
    assert not Path('out/pictures/a.png.jpg').is_symlink()


def test_a_picture_too_long_for_a_jpeg_fails_alone(run, monkeypatch):
    Image.new('RGB', (65_501, 1)).save('photos/long.png')
    report = run()
    assert [path.name for path in report.written] == ['a.png']
    assert '65500 pixels' in next(iter(report.failed.values()))


def test_what_a_mac_writes_beside_images_is_passed_over(run):
    Path('photos/._a.png').write_bytes(b'\0\5\x16\7\0\2\0\0Mac OS X')
    report = run()
    assert [path.name for path in report.written] == ['a.png']
    assert not report.failed


def test_twelve_bits_in_a_sixteen_bit_file_are_named(run):
    deep = np.random.default_rng(0).integers(0, 4096, (30, 40, 3)).astype(np.uint16)
    cv2.imwrite('photos/deep.png', deep)
    cv2.imwrite('photos/night.png', np.full((30, 40), 3, np.uint8))
    report = run()
    assert len(report.written) == 3
    problem, where, note, place = report.doubts.details()
    assert 'problem: 1 images that load nearly black, being 12 bits or fewer in 16-bit' in problem
    assert 'photos/deep.png: at most 15 of 255, ' in where
    assert note == '  note: 1 images that load nearly black'
    assert 'photos/night.png: at most 3 of 255' in place


def test_what_was_not_predicted_or_found_is_told(run):
    for name in ('x.GIF', 'deep/y.heic', 'notes.txt', '._z.heic'):
        path = Path('photos', name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    report = run()
    assert report.doubts.details() == [
        '  note: 2 files of formats that are not predicted',
        '      photos/deep/y.heic',
        '      photos/x.GIF',
    ]
    assert report.empty == len(report.written) == 1


def record(path):
    return json.loads(Path(path).read_text())


def test_images_are_put_together_by_their_shape(run, monkeypatch):
    for i in range(5):
        Image.new('RGB', (40, 30 + i % 2)).save(f'photos/{i}.png')
    Path('photos/broken.png').touch()
    seen = []
    call = Blind.__call__
    monkeypatch.setattr(Blind, '__call__', lambda *args: seen.append(args[1]) or call(*args))
    report = run(batch_size=3)
    assert len(report.written) == 6
    assert list(report.failed) == [Path('photos/broken.png')]
    assert sorted(map(len, seen)) == [1, 2, 3]
    assert all(len({image.shape for image in batch}) == 1 for batch in seen)


def test_one_image_fails_alone_in_its_batch(run, monkeypatch):
    for name in 'bcd':
        Image.new('RGB', (40, 30), name_to_colour[name]).save(f'photos/{name}.png')
    call = Blind.__call__

    def fails_at_black(self, batch):
        if any(not image.sample['img'].any() for image in batch):
            raise RuntimeError('out of memory\nand more')
        return call(self, batch)

    monkeypatch.setattr(Blind, '__call__', fails_at_black)
    report = run(batch_size=4)
    assert [path.name for path in report.written] == ['a.png', 'b.png', 'd.png']
    assert report.failed == {Path('photos/c.png'): 'out of memory'}


name_to_colour = dict(b='blue', c='black', d='white')


def test_a_video_is_a_record_a_picture_and_a_video(run):
    with written_video(Path('photos/clip.mp4'), 5) as writer:
        for grey in (0, 100, 200):
            writer.write(np.full((32, 48, 3), grey, np.uint8))
    Path('photos/broken.mp4').write_text('none')
    report = run(batch_size=2)
    assert (len(report.written), report.videos, report.frames) == (2, 1, 3)
    assert report.failed == {Path('photos/broken.mp4'): 'not a video that can be read'}
    clip = record('out/predictions/clip.mp4.json')
    assert clip['frames'] == [dict(detections=[])] * 3
    assert (clip['width'], clip['height'], clip['rate']) == (48, 32, 5)
    assert len(list(Video(Path('out/videos/clip.mp4.mp4')))) == 3
    assert 80 < cv2.imread('out/pictures/clip.mp4.jpg').mean() < 120  # the middle one
    assert '"name":"clip.mp4"' in Path('out/report.html').read_text()
    assert [path.name for path, _ in find_images(['.'], Path('out'), ['.mp4'])] == [
        'broken.mp4',
        'clip.mp4',
    ]


def test_somebody_elses_report_is_not_replaced(run):
    Path('out').mkdir()
    Path('out/report.html').write_text('mine')
    for options in (dict(), dict(force=True)):
        with pytest.raises(FileExistsError, match='no report of mmivit'):
            run(**options)
    assert os.listdir('out') == ['report.html']


@pytest.mark.parametrize('options', [dict(batch_size=0), dict(processes=0), dict(opacity=1.5)])
def test_options_out_of_range_are_one_line(options, run):
    with pytest.raises(LaunchError, match=next(iter(options))):
        run(**options)


@pytest.mark.parametrize(
    ('images', 'count', 'batch_size', 'size'),
    [(0, 2, 1, 1), (3, 8, 1, 1), (10, 2, 8, 5), (20, 2, 8, 8), (200, 2, 8, 24), (9999, 2, 8, 64)],
)
def test_shares_are_whole_batches_and_many(images, count, batch_size, size):
    assert share_size(images, count, batch_size) == size

"""Videos, whole and broken, in and out. The networks are tested elsewhere."""

import cv2
import numpy as np
import pytest

from mmivit.apis.videos import Video, as_loaded, written_video
from mmivit.datasets.loaders import ImagePipeline
from mmivit.utils.files import RefusedFile


@pytest.fixture
def video(tmp_path):
    """Six frames of 64 x 48, each of one grey."""
    path = tmp_path / 'video.mp4'
    with written_video(path, 5) as writer:
        for grey in range(0, 240, 40):
            writer.write(np.full((49, 65, 3), grey, np.uint8))
    return path


def test_frames_come_back_in_order_and_are_counted(video):
    read = Video(video)
    assert (read.size, read.rate, read.announced) == ((64, 48), 5, 6)
    assert [round(frame.mean(), -1) for frame in read] == [0, 40, 80, 120, 160, 200]
    assert [path.name for path in video.parent.iterdir()] == ['video.mp4']


def test_pictures_of_other_sizes_are_fitted_and_colours_kept(tmp_path):
    red = (200, 0, 0)  # RGB
    with written_video(tmp_path / 'x.mp4', 25) as writer:
        for size in ((32, 32), (32, 48), (32, 16)):
            writer.write(np.full((*size, 3), red, np.uint8))
    frames = list(Video(tmp_path / 'x.mp4'))
    assert [frame.shape for frame in frames] == [(32, 32, 3)] * 3
    assert np.abs(frames[1].astype(int) - red[::-1]).mean() < 10
    assert frames[2][:, 24:].min() > 240


def test_nothing_is_left_of_a_video_that_fails(tmp_path):
    def fails(writer):
        writer.write(np.zeros((32, 32, 3), np.uint8))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), written_video(tmp_path / 'x.mp4', 25) as writer:
        fails(writer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'#EXTM3U\nhttp://leak.test/x.ts', 'not a video'),
        (b'ffconcat version 1.0\nfile /etc/passwd', 'not a video'),
        (b'', 'not a video'),
        (b'\0\0\0\x20ftypisom' + bytes(300), 'damaged in its header'),
    ],
)
def test_what_is_no_video_is_refused(content, reason, tmp_path, capfd):
    (tmp_path / 'x.mp4').write_bytes(content)
    with pytest.raises(RefusedFile, match=reason):
        Video(tmp_path / 'x.mp4')
    assert capfd.readouterr() == ('', '')


def test_a_video_that_ends_early_gives_what_there_is(tmp_path):
    path = tmp_path / 'x.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 64))
    noise = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), np.uint8)
    for frame in noise:
        writer.write(frame)
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = Video(path)
    assert video.announced == 6
    assert 0 < len(list(video)) < 6


def test_frames_are_what_the_loader_makes_of_pictures(tmp_path):
    frame = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'x.png'), frame)
    for options in (dict(), dict(color_type='grayscale'), dict(to_float32=True)):
        pipeline = ImagePipeline([dict(type='LoadImageFromFile', **options)], None)
        expected, sample = pipeline.load(tmp_path / 'x.png'), as_loaded(frame, pipeline)
        assert sample['img'].dtype == expected['img'].dtype
        # Decoders of grey round by themselves.
        np.testing.assert_allclose(sample['img'], expected['img'], atol=1)
        assert (sample['img_shape'], sample['ori_shape']) == ((40, 30), (40, 30))
    pipeline.loader.imdecode_backend = 'tifffile'
    with pytest.raises(RefusedFile, match=r"loaded by LoadImageFromFile.*'tifffile'.* no frames"):
        as_loaded(frame, pipeline)

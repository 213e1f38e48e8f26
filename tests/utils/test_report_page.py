"""report.html: what it holds, and what a browser makes of it."""

import base64
import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from mmivit.utils import report_page
from mmivit.utils.report_page import write_report
from tests.conftest import TIMEOUT

HOSTILE = '</script><script src="https://leak.test/x.js"></script><img src=http://leak.test/x>'
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'chrome'))), None)


def add(folder, name, record, picture=True):
    path = folder / 'predictions' / f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(image=name, width=640, height=480, **record)))
    if picture:
        path = folder / 'pictures' / f'{name}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (640, 480), 'red').save(path)


def found(**scores):
    return [
        dict(label=0, name=name, score=score, bbox=[0, 0, 9, 9])
        for name, values in scores.items()
        for score in values
    ]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'out <b>'
    add(folder, 'a #1%41.png', dict(detections=found(circle=[0.91234, 0.4], square=[0.6])))
    add(folder, 'deep/b "&.png', dict(detections=[]))
    add(folder, 'c.png', dict(detections=found(**{HOSTILE: [0.7]}, circle=[0.2])), picture=False)
    frames = [dict(detections=found(circle=[0.5])), dict(detections=found(circle=[0.8, 0.9]))]
    add(folder, 'd.mp4', dict(fps=25.0, frames=frames))
    (folder / 'videos').mkdir()
    (folder / 'videos/d.mp4.mp4').touch()
    (folder / 'predictions/other.json').write_text('[1]')  # of somebody else
    return folder


class Page(HTMLParser):
    """Elements, texts of scripts, and every attribute that names an address."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.scripts, self.policy = [], [], [], ''
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.addresses += [
            attributes[key] for key in ('src', 'href', 'action') if key in attributes
        ]
        self.policy += attributes['content'] if 'http-equiv' in attributes else ''

    def handle_data(self, data):
        if self.tags[-1:] == ['script'] and data.strip():
            self.scripts.append(data)


def test_the_page_holds_the_predictions_and_nothing_from_elsewhere(folder):
    page = Page(write_report(folder))
    assert page.tags.count('script') == 2
    assert not page.addresses
    assert "default-src 'none'" in page.policy
    assert 'http' not in page.policy
    results = json.loads(page.scripts[0])
    assert results['title'] == 'out <b>'
    items = {item['name']: item for item in results['items']}
    assert list(items) == ['a #1%41.png', 'c.png', 'd.mp4', 'deep/b "&.png']
    assert items['a #1%41.png']['values'] == dict(circle=[0.9123, 0.4], square=[0.6])
    assert items['deep/b "&.png']['values'] == {}
    assert items['c.png']['values'] == {HOSTILE: [0.7], 'circle': [0.2]}
    assert items['d.mp4']['values'] == dict(circle=[0.5, 0.8, 0.9])
    assert items['d.mp4']['frames'] == 2
    assert unquote(items['d.mp4']['video']) == 'videos/d.mp4.mp4'
    for name, item in items.items():
        assert unquote(item['record']) == f'predictions/{name}.json'
        assert ('picture' in item) == (name != 'c.png')
        if 'picture' in item:
            assert unquote(item['picture']) == f'pictures/{name}.jpg'
            kind, data = item['thumbnail'].split(',')
            assert kind == 'data:image/jpeg;base64'
            assert Image.open(io.BytesIO(base64.b64decode(data))).size == (240, 180)


def test_shares_of_classes(tmp_path):
    add(tmp_path, 'a', dict(classes=['sky', 'sea'], shares=dict(sea=0.75, sky=0.25)))
    item = json.loads(Page(write_report(tmp_path)).scripts[0])['items'][0]
    assert item['shares']
    assert item['values'] == dict(sea=[0.75], sky=[0.25])


def test_what_failed_is_listed(folder):
    failed = {Path('photos/broken.png'): 'truncated', HOSTILE: 'no image'}
    page = Page(write_report(folder, failed=failed))
    assert not page.addresses
    assert json.loads(page.scripts[0])['failed'] == {
        'photos/broken.png': 'truncated',
        HOSTILE: 'no image',
    }


def test_many_pictures_are_shown_from_their_files(folder, monkeypatch):
    monkeypatch.setattr(report_page, 'EMBEDDED', 1)
    items = json.loads(Page(write_report(folder)).scripts[0])['items']
    assert ['thumbnail' in item for item in items] == [True, False, False, False]


def test_only_a_report_of_ours_is_replaced(folder):
    path = write_report(folder)
    before = path.read_bytes()
    assert write_report(folder).read_bytes() == before
    path.write_text('<html>mine</html>')
    with pytest.raises(FileExistsError, match='no report of mmivit'):
        write_report(folder)
    assert path.read_text() == '<html>mine</html>'


@pytest.mark.skipif(not BROWSER, reason='needs Chromium (Debian, Ubuntu: apt install chromium)')
def test_a_browser_filters_and_asks_for_nothing(folder, tmp_path):
    page = write_report(folder, failed={HOSTILE: 'no image'})

    def shown(view):
        log = tmp_path / 'requests.json'
        done = subprocess.run(
            [
                BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
                '--disable-background-networking', '--host-resolver-rules=MAP * ~NOTFOUND',
                f'--user-data-dir={tmp_path / "profile"}', f'--log-net-log={log}',
                '--dump-dom', f'{page.as_uri()}#{view}',
            ],
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert 'leak.test' not in log.read_text()
        cards = done.stdout.split('<article>')[1:]
        return done.stdout, [name for name in names if any(f'>{name}</a>' in c for c in cards)]

    names = ['a #1%41.png', 'c.png', 'd.mp4', 'deep/b "&amp;.png']
    text, cards = shown('')
    assert cards == names
    assert '>4 of 4</output>' in text
    assert '>1 could not be predicted</summary>' in text
    assert 'no image</li>' in text
    assert '2 circle (0.91), 1 square (0.60)' in text
    assert '640 x 480, 2 frames' in text
    text, cards = shown('class=circle&least=0.3')
    assert cards == ['a #1%41.png', 'd.mp4']
    assert '>circle<small>5</small>' in text
    assert '>nothing found<small>1</small>' in text

"""Tables in Markdown."""

from mmivit.utils.tables import markdown_row, markdown_table


def test_names_stand_to_the_left_and_numbers_to_the_right():
    table = markdown_table(['name', 'size', 'score'], [('a', '1 x 2', 3), ('b', '', 4.5)], names=2)
    assert table.splitlines() == [
        '| name | size | score |',
        '|---|---|---:|',
        '| a | 1 x 2 | 3 |',
        '| b |  | 4.5 |',
    ]


def test_a_table_row_by_row_is_the_table():
    rows = [('a', 1), ('b', 2)]
    one_by_one = [markdown_table(['name', 'score']), *map(markdown_row, rows)]
    assert '\n'.join(one_by_one) == markdown_table(['name', 'score'], rows)

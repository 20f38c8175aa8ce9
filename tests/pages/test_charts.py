from deeplab_jax.pages.charts import draw_lines


def test_a_line_keeps_its_colour_beside_one_without_points():
    figure = draw_lines("loss", {"weights": [], "run": [(1, 2.0), (2, 1.0)]})
    assert 'class="line line1"' in figure
    assert '<b class="key1">run</b>' in figure
    assert "weights" not in figure
    assert "key" not in draw_lines("loss", {"run": [(1, 2.0), (2, 1.0)]})
    assert draw_lines("loss", {"run": []}) == ""

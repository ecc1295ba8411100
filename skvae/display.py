"""Pictures of fitted models, in the form of scikit-learn's displays.

Each class holds what was computed, ``plot`` draws it, and ``from_estimator`` does both. They take
a fitted `VAETransformer`, a `Pipeline` or a search that ends in one, or an estimator that holds one
as ``estimator_``. Of a pipeline, rows are drawn as they reach the model, after the earlier steps.
Axes of your own are best of a figure with ``layout="constrained"``, which leaves room for legends.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from .checks import check_integer
from .drawing import (
    BARS,
    BLUE,
    COLORS,
    DISTINCT,
    GREY,
    ORANGE,
    Array,
    axes,
    bin_edges,
    cells_of,
    check_image_shape,
    check_images,
    check_y,
    choose_components,
    choose_features,
    column_of,
    component_label,
    draw_images,
    find_model,
    is_scale,
    last_step,
    legend_outside,
    levels_of,
    marginal,
    mean_and_scale,
    name_features,
    need,
    noise_std,
    numbers,
    panels_in,
    pyplot,
    shares_in,
    strip_widths,
    styled,
    without,
)
from .latent import traversal

MARKERS = "o^"  # the second for levels beyond the ten colours
WALKS = 5  # components that are walked along where none are named
LINES = 8  # features of a walk that have a colour
SCALED = 10_000  # rows that say how wide columns are
DENSE = 5_000  # points from which on a scatter is a bitmap, also in vector graphics


class LatentDisplay:
    """Rows in the latent space, coloured by what is known about them.

    Use `from_estimator` to make one.

    Parameters
    ----------
    latents : ndarray of shape (n_samples, 1) or (n_samples, 2)
        One or two components of each row's latent.
    labels : sequence of str
        Of these components' axes.
    y : array-like of shape (n_samples,), default=None
        A label or number for each row.
    std : ndarray of the latents' shape, default=None
        Standard deviations of the posteriors.

    Attributes
    ----------
    scatter_ : PathCollection
        The points, in the order of the rows.
    errorbar_ : ErrorbarContainer or None
        The standard deviations.
    legend_ : Legend or None
        Names of y's levels.
    colorbar_ : Colorbar or None
        The scale of y.
    ax_, figure_ : Axes, Figure
        Where it was drawn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.display import LatentDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> vae = VAETransformer(max_iter=0, random_state=0).fit(X)
    >>> LatentDisplay.from_estimator(vae, X, y).ax_.get_xlabel()
    'component 0 (1.78 nats)'
    """

    def __init__(
        self, *, latents: Array, labels: Sequence[str], y: Any = None, std: Array | None = None
    ) -> None:
        self.latents = latents
        self.labels = labels
        self.y = y
        self.std = std

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        components: Any = None,
        posterior: bool = False,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Compute the latents of X and draw them.

        Parameters
        ----------
        estimator : fitted estimator
            See the module.
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Text, flags and up to 20 whole numbers are levels, other numbers a scale. What is
            missing is grey.
        components : int, or sequence of one or two, default=None
            None: the two that carry most nats. One is drawn as a strip, as wide as rows are dense,
            for each level of y, or against the scale of y.
        posterior : bool, default=False
            Whether to add bars of one standard deviation of the posterior.
        ax : Axes, default=None
            None makes a figure.
        **kwargs
            Of `Axes.scatter`.

        Returns
        -------
        display : LatentDisplay
        """
        pyplot()
        model, rows, _ = find_model(estimator, X)
        chosen = choose_components(model, components, 2)
        if len(chosen) > 2:
            raise ValueError(f"components must be one or two, got {components!r}.")
        std = None
        if posterior:
            latents, std = need(model, "posterior")(rows)
            std = std[:, chosen]
        else:
            latents = model.transform(rows)
        display = cls(
            latents=latents[:, chosen],
            labels=[component_label(model, i) for i in chosen],
            y=check_y(y, len(latents)),
            std=std,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure.
        **kwargs
            Of `Axes.scatter`.

        Returns
        -------
        display : LatentDisplay
        """
        ax = axes(ax)
        n_rows = len(self.latents)
        look = {
            "s": float(np.clip(15_000 / max(n_rows, 1), 4, 25)),
            "alpha": 0.8,
            "linewidth": 0,
            "rasterized": n_rows > DENSE,
        }
        ax.set_xlabel(self.labels[0])
        if len(self.labels) == 2:
            ax.set_ylabel(self.labels[1])
        self.errorbar_ = self.colorbar_ = self.legend_ = None
        cells, there = cells_of(np.zeros(n_rows, dtype=int) if self.y is None else self.y)
        draw = self._draw_scale if is_scale(cells) else self._draw_levels
        self.scatter_ = draw(ax, cells, there, styled(look, kwargs, "points"))
        if self.std is not None:
            x, y = np.asarray(self.scatter_.get_offsets()).T
            self.errorbar_ = ax.errorbar(
                x,
                y,
                xerr=self.std[:, 0],
                yerr=self.std[:, 1] if len(self.labels) == 2 else None,
                fmt="none",
                ecolor="0.6",
                elinewidth=0.5,
                zorder=0.9,  # behind the points
            )
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_scale(self, ax: Any, cells: Array, there: Array, look: Any) -> Any:
        """Points along a scale: of colours, or with one component the other axis."""
        values = np.full(len(there), np.nan)
        values[there] = cells
        name = getattr(self.y, "name", None) or "y"
        n_gaps = len(there) - len(cells)
        if len(self.labels) == 1:
            ax.set_ylabel(name + (f" ({n_gaps} missing)" if n_gaps else ""))
            return ax.scatter(self.latents[:, 0], values, **{"color": BLUE} | look)
        points = ax.scatter(*self.latents.T, c=values, plotnonfinite=True, **look)
        points.set_cmap(points.get_cmap().with_extremes(bad=GREY))
        label = name + (f" (grey: {n_gaps} missing)" if n_gaps else "")
        self.colorbar_ = ax.figure.colorbar(points, ax=ax, label=label)
        return points

    def _draw_levels(self, ax: Any, cells: Array, there: Array, look: Any) -> Any:
        """Points of a few levels: in colours of their own, with one component also strips."""
        from matplotlib.lines import Line2D
        from matplotlib.markers import MarkerStyle

        levels, codes = levels_of(cells, DISTINCT)
        looks = [(COLORS[i % len(COLORS)], MARKERS[i // len(COLORS)]) for i in range(len(levels))]
        if len(np.unique(cells)) > DISTINCT:
            looks[-1] = GREY, MARKERS[0]
        if not there.all():
            levels, looks = [*levels, "missing"], [*looks, (GREY, MARKERS[0])]
            known, codes = codes, np.full(len(there), len(levels) - 1)
            codes[there] = known
        colors, markers = zip(*looks, strict=True)
        x = self.latents[:, 0]
        across = codes + strip_widths(x, codes) if len(self.labels) == 1 else self.latents[:, 1]
        points = ax.scatter(x, across, **{"color": [colors[i] for i in codes]} | look)
        if len(levels) > len(COLORS) and "marker" not in look:
            styles = [MarkerStyle(markers[i]) for i in codes]
            points.set_paths([m.get_path().transformed(m.get_transform()) for m in styles])
        if len(self.labels) == 1:
            if self.y is None:
                ax.set_yticks([])
            else:
                ax.set_yticks(range(len(levels)), levels)
                ax.set_ylabel(getattr(self.y, "name", None) or "")
            ax.invert_yaxis()  # the first level on top
        elif self.y is not None:
            handles = [
                Line2D([], [], color=color, marker=marker, linestyle="", label=level)
                for level, (color, marker) in zip(levels, looks, strict=True)
            ]
            size = "small" if len(levels) > len(COLORS) else "medium"
            name = getattr(self.y, "name", None)
            self.legend_ = legend_outside(ax, handles, name, fontsize=size)
        return points


class TrainingDisplay:
    """The evidence bound by epoch, of training and of held-out rows.

    Use `from_estimator` to make one.

    Parameters
    ----------
    training : array-like of shape (n_epochs,)
        ELBO of the rows trained on, nats per row.
    validation : array-like of shape (n_epochs,), default=()
        That of the held-out rows.
    best_score : float or None, default=None
        The largest of them and of the start's.

    Attributes
    ----------
    lines_ : list of Line2D
        Training, held-out and, where it is known, the best epoch.
    ax_, figure_ : Axes, Figure
        Where it was drawn.

    Examples
    --------
    >>> from skvae.display import TrainingDisplay
    >>> display = TrainingDisplay(
    ...     training=[-9.0, -5.0, -4.0], validation=[-9.0, -6.0, -7.0], best_score=-6.0
    ... ).plot()
    >>> [line.get_label() for line in display.lines_]
    ['training', 'held-out', 'best: epoch 2 (-6.00)']
    """

    def __init__(
        self, *, training: Any, validation: Any = (), best_score: float | None = None
    ) -> None:
        self.training = training
        self.validation = validation
        self.best_score = best_score

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **kwargs: Any) -> Self:
        """Draw the training of an estimator.

        Parameters
        ----------
        estimator : fitted estimator
            See the module.
        ax : Axes, default=None
            None makes a figure.
        **kwargs
            Of `Axes.plot`.

        Returns
        -------
        display : TrainingDisplay
        """
        pyplot()
        model, _, _ = find_model(estimator)
        if not model.loss_curve_:
            raise ValueError(
                f"There are no epochs to draw: max_iter={model.max_iter} leaves the start as it is."
            )
        display = cls(
            training=-np.array(model.loss_curve_),
            validation=np.array(model.validation_scores_),
            best_score=model.best_validation_score_,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure.
        **kwargs
            Of `Axes.plot`.

        Returns
        -------
        display : TrainingDisplay
        """
        ax = axes(ax)
        self.lines_ = []
        curves = ("training", self.training, BLUE), ("held-out", self.validation, ORANGE)
        for label, curve, color in curves:
            if len(curve):
                epochs = np.arange(1, len(curve) + 1)
                # a curve of one epoch is a point
                look = {"label": label, "color": color, "marker": "" if len(curve) > 1 else "o"}
                self.lines_ += ax.plot(epochs, curve, **styled(look, kwargs, "line"))
        values = np.concatenate([self.training, self.validation])
        if len(self.validation) and self.best_score is not None:
            scores = np.where(np.isnan(self.validation), -np.inf, self.validation)
            best, which = int(scores.argmax()) + 1, "epoch "
            if self.best_score > scores[best - 1]:
                best, which = 0, "the start, epoch "
            label = f"best: {which}{best} ({self.best_score:.2f})"
            look = {"color": "black", "marker": "o", "linestyle": ""}
            self.lines_ += ax.plot([best], [self.best_score], label=label, **look)
            values = np.append(values, self.best_score)
        finite = values[np.isfinite(values)]
        xlabel = "epoch"
        if len(finite):
            # the first epochs may be so bad that nothing else could be seen
            top, usual = finite.max(), np.percentile(finite, 10)
            floor = usual - (top - usual)
            below = sorted({i + 1 for _, c, _ in curves for i in np.flatnonzero(np.less(c, floor))})
            if below:
                ax.set_ylim(floor, top + 0.05 * (top - floor))
                xlabel += f"\n({len(below)} of them lie below, up to epoch {below[-1]})"
        ax.set(xlabel=xlabel, ylabel="ELBO, nats per row")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(self.lines_), frameon=False
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self


class ComponentsDisplay:
    """What each component of the latent says about a row, in nats.

    Use `from_estimator` to make one.

    Parameters
    ----------
    information : ndarray of shape (n_components,)
        Nats that each component carries.
    n_active : int
        How many carry enough to count.

    Attributes
    ----------
    bars_ : BarContainer
        In order of information.
    ax_, figure_ : Axes, Figure
        Where it was drawn.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.display import ComponentsDisplay
    >>> display = ComponentsDisplay(information=np.array([0.5, 0.001, 2.0]), n_active=2).plot()
    >>> display.ax_.get_title()
    '2 of 3 components active, 2.50 nats in all'
    """

    def __init__(self, *, information: Array, n_active: int) -> None:
        self.information = information
        self.n_active = n_active

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **kwargs: Any) -> Self:
        """Draw the components of an estimator.

        Parameters
        ----------
        estimator : fitted estimator
            See the module.
        ax : Axes, default=None
            None makes a figure.
        **kwargs
            Of `Axes.bar`.

        Returns
        -------
        display : ComponentsDisplay
        """
        pyplot()
        model, _, _ = find_model(estimator)
        if np.isnan(model.kl_per_component_).any():
            raise ValueError(
                f"beta={model.beta} is a plain autoencoder: its components carry no nats. "
                "Give beta a positive number, 1 for the ELBO."
            )
        display = cls(information=model.kl_per_component_, n_active=model.n_active_components_)
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure.
        **kwargs
            Of `Axes.bar`.

        Returns
        -------
        display : ComponentsDisplay
        """
        n = len(self.information)
        ax = axes(ax, figsize=(min(max(6.4, 0.35 * n), 14), 4.0))
        order = np.argsort(-self.information, kind="stable")
        # active ones come first, in this order
        colors = [BLUE] * self.n_active + [GREY] * (n - self.n_active)
        look = styled({"color": colors}, kwargs, "patch")
        self.bars_ = ax.bar(range(n), self.information[order], **look)
        if n <= 16:
            ax.bar_label(self.bars_, fmt="%.2f", fontsize="small")
        if 0 < self.n_active < n:  # seen also where bars are too low to have a colour
            ax.axvline(self.n_active - 0.5, color="0.5", linestyle=":")
        ax.margins(x=0.01, y=0.1)
        at = range(0, n, math.ceil(n / 40))
        ax.set_xticks(at, [str(order[i]) for i in at])
        ax.set(
            xlabel="component",
            ylabel="nats per row",
            title=f"{self.n_active} of {n} components active, "
            f"{self.information.sum():.2f} nats in all",
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self


class ReconstructionDisplay:
    """Rows and what the model makes of them: as images, or feature by feature.

    Use `from_estimator` to make one.

    Parameters
    ----------
    rows, reconstructions : ndarray of shape (n_rows, n_features)
        Numbers, NaN where a cell is missing; without ``image_shape`` in units of the columns'
        standard deviations, from their means.
    image_shape : tuple of int, default=None
        Of a row as an image.
    feature_names : sequence of str, default=()
        Of the columns, without ``image_shape``.
    noise : ndarray of shape (n_features,), default=None
        Standard deviation of a cell given the latent; NaN where there is none.
    left_out : sequence of str, default=()
        Columns of text, which have no place on an axis of numbers.

    Attributes
    ----------
    image_ : AxesImage or None
        All images.
    lines_ : list of Line2D
        The rows.
    errorbars_ : list of ErrorbarContainer
        Their reconstructions, with bars of one standard deviation of the noise.
    axes_ : ndarray of Axes
        Of each row; with images the one that holds them all.
    ax_, figure_ : Axes, Figure
        Where it was drawn.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.display import ReconstructionDisplay
    >>> X = load_digits().data
    >>> vae = VAETransformer(10, max_iter=0, random_state=0).fit(X)
    >>> display = ReconstructionDisplay.from_estimator(vae, X, image_shape=(8, 8), n_rows=5)
    >>> display.image_.get_array().shape  # two rows of five images, with gaps
    (17, 44)
    """

    def __init__(
        self,
        *,
        rows: Array,
        reconstructions: Array,
        image_shape: Sequence[int] | None = None,
        feature_names: Sequence[str] = (),
        noise: Array | None = None,
        left_out: Sequence[str] = (),
    ) -> None:
        self.rows = rows
        self.reconstructions = reconstructions
        self.image_shape = image_shape
        self.feature_names = feature_names
        self.noise = noise
        self.left_out = left_out

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        image_shape: Any = None,
        n_rows: int | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Reconstruct the first rows of X and draw both.

        Parameters
        ----------
        estimator : fitted estimator
            See the module.
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows. Without ``image_shape`` their first 10,000 say how wide columns are.
        image_shape : tuple of int, default=None
            ``(height, width)`` or ``(height, width, channels)`` of a row that is an image. None
            draws features side by side, in units of their standard deviations.
        n_rows : int, default=None
            Rows to draw. None: 10 images, or 4 other rows.
        ax : Axes, default=None
            None makes a figure. Without ``image_shape`` it is divided into panels.
        **kwargs
            Of `Axes.imshow`, or of `Axes.errorbar`, which draws the reconstructions.

        Returns
        -------
        display : ReconstructionDisplay
        """
        pyplot()
        model, X, names = find_model(estimator, X)
        if n_rows is None:
            n_rows = 4 if image_shape is None else 10
        check_integer("n_rows", n_rows, 1, "or None")
        shown = X[:n_rows]
        decoded, kept = numbers(model.inverse_transform(model.transform(shown)))
        rows, _ = numbers(shown, kept)
        if image_shape is not None:
            image_shape = check_image_shape(image_shape, len(names))
            check_images(kept, names)
            display = cls(rows=rows, reconstructions=decoded, image_shape=image_shape)
        else:
            location, scale = mean_and_scale(numbers(X[:SCALED], kept)[0])
            display = cls(
                rows=(rows - location) / scale,
                reconstructions=(decoded - location) / scale,
                feature_names=[names[j] for j in kept],
                noise=noise_std(model, names)[kept] / scale,
                left_out=[names[j] for j in range(len(names)) if j not in kept],
            )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure. Without ``image_shape`` it is divided into panels.
        **kwargs
            Of `Axes.imshow`, or of `Axes.errorbar`, which draws the reconstructions.

        Returns
        -------
        display : ReconstructionDisplay
        """
        self.image_: Any = None
        self.lines_: list[Any] = []
        self.errorbars_: list[Any] = []
        if self.image_shape is not None:
            images = np.stack([self.rows, self.reconstructions])
            shades = {"vmin": np.nanmin(self.rows), "vmax": np.nanmax(self.rows)}
            labels = ["rows", "reconstructed"]
            ax, self.image_ = draw_images(ax, images, self.image_shape, labels, shades | kwargs)
            self.axes_ = np.array([ax])
        else:
            ax, self.axes_ = self._draw_profiles(ax, kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_profiles(self, ax: Any, kwargs: Any) -> tuple[Any, Array]:
        n_rows, n_features = self.rows.shape
        longest = max(map(len, self.feature_names))
        size = min(max(6.4, 0.25 * n_features), 12) + 2.5, 1.5 * n_rows + 0.08 * longest + 0.3
        ax, panels, side = panels_in(ax, (n_rows, 1), n_rows, size, shared=True)
        at = np.arange(n_features)
        look = {"color": BLUE, "marker": "o", "markersize": 4, "capsize": 2}
        look = styled(look, kwargs, "line")
        for i, panel in enumerate(panels):
            # observed cells are circles, so that what lies in their middle is seen
            self.lines_ += panel.plot(
                at, self.rows[i], "o", color="black", fillstyle="none", markersize=8
            )
            self.errorbars_.append(
                panel.errorbar(at, self.reconstructions[i], yerr=self.noise, **look)
            )
            panel.set_ylabel(f"row {i}")
            panel.tick_params(labelbottom=panel is panels[-1])
        name_features(panels[-1], self.feature_names)
        title = "standard deviations\nfrom the columns' means" + without(self.left_out)
        handles = {"row": self.lines_[0], "reconstructed,\n± sd of the noise": self.errorbars_[0]}
        legend_outside(side, handles.values(), title, labels=handles.keys())
        return ax, panels


class TraversalDisplay:
    """Walks along components of the latent, decoded: as images, or a line for each feature.

    Use `from_estimator` to make one.

    Parameters
    ----------
    values : ndarray of shape (n_values,)
        Of the component that is walked along.
    walks : ndarray of shape (n_walks, n_values, n_features)
        What latents become; without ``image_shape`` the features' differences from where the walks
        cross, in units of their standard deviations.
    labels : sequence of str
        Of the walks.
    image_shape : tuple of int, default=None
        Of a row as an image.
    feature_names : sequence of str, default=()
        Of the columns, without ``image_shape``.
    left_out : sequence of str, default=()
        Columns of text, which have no place on an axis of numbers.

    Attributes
    ----------
    image_ : AxesImage or None
        All images.
    lines_ : list of list of Line2D
        Of each walk, the features' lines.
    legend_ : Legend or None
        Names of the features that change most.
    axes_ : ndarray of Axes
        Of each walk; with images the one that holds them all.
    ax_, figure_ : Axes, Figure
        Where it was drawn.

    See Also
    --------
    skvae.latent.traversal : The latents of a walk.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.display import TraversalDisplay
    >>> vae = VAETransformer(10, max_iter=0, random_state=0).fit(load_digits().data)
    >>> display = TraversalDisplay.from_estimator(vae, components=[0, 1], image_shape=(8, 8))
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['component 0 (1.46 nats)', 'component 1 (1.34 nats)']
    """

    def __init__(
        self,
        *,
        values: Array,
        walks: Array,
        labels: Sequence[str],
        image_shape: Sequence[int] | None = None,
        feature_names: Sequence[str] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        self.values = values
        self.walks = walks
        self.labels = labels
        self.image_shape = image_shape
        self.feature_names = feature_names
        self.left_out = left_out

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        *,
        components: Any = None,
        values: Any = None,
        image_shape: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Decode walks along components and draw them.

        Parameters
        ----------
        estimator : fitted estimator
            See the module.
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features), default=None
            Rows through whose mean latent to walk, a single one for example. None: through the
            middle of the prior, zero.
        components : int or sequence of int, default=None
            None: the five that carry most nats.
        values : array-like of shape (n_values,), default=None
            Values of the component; the prior's scale is 1. None: seven from -3 to 3 for images,
            25 for lines.
        image_shape : tuple of int, default=None
            ``(height, width)`` or ``(height, width, channels)`` of a row that is an image. None
            draws a line for each feature, in units of its standard deviation in X, or else in
            1,000 rows that the model draws.
        ax : Axes, default=None
            None makes a figure. Without ``image_shape`` it is divided into panels.
        **kwargs
            Of `Axes.imshow`, or of `Axes.plot`.

        Returns
        -------
        display : TraversalDisplay
        """
        pyplot()
        model, X, names = find_model(estimator, X)
        chosen = choose_components(model, components, WALKS)
        middle: Any = len(model.kl_per_component_)
        if X is not None:
            middle = model.transform(X).mean(0)
        if values is None:
            values = np.linspace(-3, 3, 25 if image_shape is None else 7)
        latents = [traversal(i, middle, values) for i in chosen]
        decoded = [numbers(model.inverse_transform(Z)) for Z in latents]
        kept = decoded[0][1]
        walks = np.stack([cells for cells, _ in decoded])
        if image_shape is not None:
            image_shape = check_image_shape(image_shape, len(names))
            check_images(kept, names)
        else:
            rows = need(model, "sample")(1000, random_state=0) if X is None else X[:SCALED]
            crossing = np.zeros((1, middle)) if X is None else middle[None]
            origin, _ = numbers(model.inverse_transform(crossing), kept)
            walks = (walks - origin) / mean_and_scale(numbers(rows, kept)[0])[1]
        display = cls(
            values=np.asarray(values),
            walks=walks,
            labels=[component_label(model, i) for i in chosen],
            image_shape=image_shape,
            feature_names=[names[j] for j in kept],
            left_out=[names[j] for j in range(len(names)) if j not in kept],
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure. Without ``image_shape`` it is divided into panels.
        **kwargs
            Of `Axes.imshow`, or of `Axes.plot`.

        Returns
        -------
        display : TraversalDisplay
        """
        self.image_: Any = None
        self.lines_: list[Any] = []
        self.legend_: Any = None
        if self.image_shape is not None:
            ax, self.image_ = draw_images(ax, self.walks, self.image_shape, self.labels, kwargs)
            ax.set_xticks(ax.get_xticks(), [f"{value:.3g}" for value in self.values])
            ax.set_xlabel("value of the component")
            self.axes_ = np.array([ax])
        else:
            ax, self.axes_ = self._draw_lines(ax, kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_lines(self, ax: Any, kwargs: Any) -> tuple[Any, Array]:
        n_walks, _, n_features = self.walks.shape
        size = 8.9, 2.0 * n_walks + 1.6
        ax, panels, side = panels_in(ax, (n_walks, 1), n_walks, size, shared=True)
        # where there are many features, those that change most have colours
        change = np.ptp(self.walks, axis=1)
        rank = (-change).argsort(1).argsort(1)  # in each walk
        most = np.lexsort((-change.max(0), rank.min(0)))[:LINES]
        color = {int(j): COLORS[i] for i, j in enumerate(sorted(most))}
        for walk, label, panel in zip(self.walks, self.labels, panels, strict=True):
            lines = []
            for j in range(n_features):
                look = {"color": color.get(j, GREY), "zorder": 2 if j in color else 1}
                lines += panel.plot(self.values, walk[:, j], **styled(look, kwargs, "line"))
            self.lines_.append(lines)
            panel.set_title(label, fontsize="medium")
            panel.set_ylabel("change, sd")
            panel.tick_params(labelbottom=panel is panels[-1])
        panels[-1].set(xlabel="value of the component", xlim=(self.values[0], self.values[-1]))
        shown = {self.feature_names[j]: self.lines_[0][j] for j in color}
        others = [j for j in range(n_features) if j not in color]
        if others:
            shown[f"{len(others)} others"] = self.lines_[0][others[0]]
        title = without(self.left_out).strip() or None
        self.legend_ = legend_outside(side, shown.values(), title, labels=shown.keys())
        return ax, panels


class MarginalsDisplay:
    """Columns of the data beside those of rows that the model draws.

    Use `from_estimator` to make one.

    Parameters
    ----------
    feature_names : sequence of str
        Of the columns.
    bins : list of ndarray or list of str
        Of each column, edges of bins, one more than there are bins, or names of levels.
    observed, sampled : list of ndarray
        Shares of its cells in them, which sum to one.
    notes : sequence of str
        What is not seen: gaps, and cells beyond the bins, which the outermost ones hold.
    n_features : int
        Number of columns that there are.

    Attributes
    ----------
    artists_ : list of tuple
        Of each column, what was drawn of the data and of the samples: StepPatch for numbers,
        BarContainer for levels.
    legend_ : Legend
        Which is which.
    axes_ : ndarray of Axes
        Of each column.
    ax_, figure_ : Axes, Figure
        Where it was drawn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.display import MarginalsDisplay
    >>> X = load_iris().data
    >>> vae = VAETransformer(max_iter=0, random_state=0).fit(X)
    >>> display = MarginalsDisplay.from_estimator(vae, X, features=[0, 2], random_state=0)
    >>> display.feature_names
    ['x0', 'x2']
    """

    def __init__(
        self,
        *,
        feature_names: Sequence[str],
        bins: Sequence[Any],
        observed: Sequence[Array],
        sampled: Sequence[Array],
        notes: Sequence[str],
        n_features: int,
    ) -> None:
        self.feature_names = feature_names
        self.bins = bins
        self.observed = observed
        self.sampled = sampled
        self.notes = notes
        self.n_features = n_features

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        features: Any = None,
        n_samples: int = 1000,
        random_state: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw rows from the model, and their columns beside those of X.

        Parameters
        ----------
        estimator : fitted estimator
            See the module.
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows.
        features : sequence of int or str, default=None
            Columns by name or index. None: the first twelve.
        n_samples : int, default=1000
            Rows that the model draws.
        random_state : int, RandomState instance or None, default=None
            Of these draws.
        ax : Axes, default=None
            None makes a figure. It is divided into panels.
        **kwargs
            Of `Axes.stairs`, and of `Axes.bar` where a column has few levels.

        Returns
        -------
        display : MarginalsDisplay
        """
        pyplot()
        model, X, names = find_model(estimator, X)
        chosen = choose_features(features, names)
        model.transform(X[:1])  # says what is wrong with X
        drawn = need(model, "sample")(n_samples, random_state=random_state)
        columns = [marginal(*column_of(X, j), column_of(drawn, j)[0]) for j in chosen]
        bins, observed, sampled, notes = map(list, zip(*columns, strict=True))
        display = cls(
            feature_names=[names[j] for j in chosen],
            bins=bins,
            observed=observed,
            sampled=sampled,
            notes=notes,
            n_features=len(names),
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure. It is divided into panels.
        **kwargs
            Of `Axes.stairs`, and of `Axes.bar` where a column has few levels.

        Returns
        -------
        display : MarginalsDisplay
        """
        n = len(self.feature_names)
        n_columns = n if n <= 3 else min(math.ceil(math.sqrt(n)), 4)
        n_lines = math.ceil(n / n_columns)
        size = 2.6 * n_columns + 1.6, 2.2 * n_lines + 0.4
        ax, self.axes_, side = panels_in(ax, (n_lines, n_columns), n, size, shared=False)
        self.artists_ = []
        pale = styled({"facecolor": (BLUE, 0.45), "edgecolor": "none"}, kwargs, "patch")
        line = {"facecolor": "none", "edgecolor": ORANGE, "linewidth": 1.5}
        line = styled(line, kwargs, "patch")
        for i, panel in enumerate(self.axes_):
            bins, observed, sampled = self.bins[i], self.observed[i], self.sampled[i]
            if len(bins) > len(observed):
                one = panel.stairs(observed, bins, **{"fill": True} | pale)
                two = panel.stairs(sampled, bins, **line)
            else:
                at = np.arange(len(bins))
                one = panel.bar(at - 0.2, observed, 0.4, **pale)
                two = panel.bar(at + 0.2, sampled, 0.4, **line)
                upright = len(bins) > 3 and sum(map(len, bins)) > 12
                panel.set_xticks(at, bins, rotation=90 if upright else 0)
            self.artists_.append((one, two))
            panel.set_title(self.feature_names[i], fontsize="medium")
            panel.set_xlabel(self.notes[i], fontsize="small")
            if i % n_columns == 0:
                panel.set_ylabel("share")
        title = f"{n} of {self.n_features} columns" if n < self.n_features else None
        self.legend_ = legend_outside(side, self.artists_[0], title, labels=["observed", "sampled"])
        self.ax_, self.figure_ = ax, ax.figure
        return self


class AnomalyDisplay:
    """How probable rows are under the model.

    Use `from_estimator` to make one.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Log-density of each row, in nats.
    y : array-like of shape (n_samples,), default=None
        A label for each row, such as whether it is known to be an outlier.
    offset : float or None, default=None
        Rows below it are called outliers.

    Attributes
    ----------
    edges_ : ndarray
        Of the bins. The outermost ones hold what lies beyond; the axis's label then says so.
    stairs_ : list of StepPatch
        Of all rows, or of each level of y, shares of its rows.
    line_ : Line2D or None
        The offset.
    ax_, figure_ : Axes, Figure
        Where it was drawn.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.display import AnomalyDisplay
    >>> scores = np.append(np.linspace(-2.0, 0.0, 99), -1e6)
    >>> print(AnomalyDisplay(scores=scores).plot().ax_.get_xlabel())
    log-density, nats per row
    (first bin: 1 row more, down to -1e+06)
    """

    def __init__(self, *, scores: Array, y: Any = None, offset: float | None = None) -> None:
        self.scores = scores
        self.y = y
        self.offset = offset

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any = None, *, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Score the rows of X and draw the scores' distribution.

        Parameters
        ----------
        estimator : fitted estimator
            See the module. An outlier detector around a model is asked for its own scores, and its
            ``offset_`` is drawn.
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Labels of ten levels at most, such as whether a row is known to be an outlier. Each has
            a distribution of its own.
        ax : Axes, default=None
            None makes a figure.
        **kwargs
            Of `Axes.stairs`.

        Returns
        -------
        display : AnomalyDisplay
        """
        pyplot()
        last, rows, _ = last_step(estimator, X)
        if not hasattr(type(last), "score_samples"):
            last, rows, _ = find_model(last, rows)
        scores = need(last, "score_samples")(rows)
        y = check_y(y, len(scores))
        if y is not None and len(levels := np.unique(cells_of(y)[0])) > BARS:
            raise ValueError(
                f"y must have at most {BARS} levels, such as whether a row is known to be an "
                f"outlier, got {len(levels)}."
            )
        display = cls(scores=scores, y=y, offset=getattr(last, "offset_", None))
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure.
        **kwargs
            Of `Axes.stairs`.

        Returns
        -------
        display : AnomalyDisplay
        """
        ax = axes(ax)
        scores, n_rows = np.asarray(self.scores, dtype=np.float64), len(self.scores)
        self.edges_ = bin_edges(scores, int(np.clip(3 * n_rows ** (1 / 3), 10, 60)), 0.25)
        groups = {f"{n_rows} rows": np.ones(n_rows, dtype=bool)}
        if self.y is not None:
            cells, there = cells_of(self.y)
            levels, known = levels_of(cells, BARS)
            codes = np.full(n_rows, len(levels))
            codes[there] = known
            of = {level: codes == i for i, level in enumerate([*levels, "missing"])}
            groups = {f"{level} ({rows.sum()})": rows for level, rows in of.items() if rows.any()}
        self.stairs_ = []
        for i, (label, rows) in enumerate(groups.items()):
            color = COLORS[i % len(COLORS)]
            look = {"fill": True, "facecolor": (color, 0.35), "edgecolor": color, "linewidth": 1.5}
            look = styled(look | {"label": label}, kwargs, "patch")
            self.stairs_.append(
                ax.stairs(shares_in(scores[rows], self.edges_), self.edges_, **look)
            )
        self.line_ = None
        if self.offset is not None:
            below = (scores < self.offset).mean()
            label = f"offset_ {self.offset:.4g}:\n{below:.1%} of rows below"
            self.line_ = ax.axvline(self.offset, color="black", linestyle="--", label=label)
        xlabel = "log-density, nats per row"
        notes = []
        for which, beyond, extreme in (
            ("first", scores < self.edges_[0], f"down to {scores.min():.3g}"),
            ("last", scores > self.edges_[-1], f"up to {scores.max():.3g}"),
        ):
            if n := int(beyond.sum()):
                notes.append(f"{which} bin: {n} row{'s' * (n > 1)} more, {extreme}")
        if notes:
            xlabel += f"\n({', '.join(notes)})"
        ax.set(xlabel=xlabel, ylabel="share of rows")
        if self.y is not None or self.offset is not None:
            handles = [*self.stairs_, *([] if self.line_ is None else [self.line_])]
            legend_outside(ax, handles, getattr(self.y, "name", None))
        self.ax_, self.figure_ = ax, ax.figure
        return self

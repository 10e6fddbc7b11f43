//! Bounding volume hierarchies over points or triangles, by the crate `bvh`.

use bvh::aabb::{Aabb, Bounded};
use bvh::bounding_hierarchy::BHShape;
use bvh::bvh::{Bvh, BvhNode};
use bvh::point_query::PointDistance;
use bvh::ray::Ray;
use nalgebra::{Point3, Vector3};

use super::vectors::V3;

/// Share of the whole extent by which boxes are made larger. A box without area, as of points on a line, has no cost to split by, and the hierarchy would
/// lose what is in it.
const PAD: f64 = 1e-12;

/// What a tree can hold.
pub(crate) trait Closest {
    /// Lowest and highest corner.
    fn bounds(&self) -> [V3; 2];
    /// Squared distance to a point.
    fn distance_squared(&self, point: V3) -> f64;
}

impl Closest for V3 {
    fn bounds(&self) -> [V3; 2] {
        [*self, *self]
    }

    fn distance_squared(&self, point: V3) -> f64 {
        let d = super::vectors::sub(*self, point);
        super::vectors::dot(d, d)
    }
}

/// Things with a place in the hierarchy.
#[derive(Debug)]
struct Item<G> {
    thing: G,
    index: u32,
    pad: f64,
    node: usize,
}

impl<G: Closest> Bounded<f64, 3> for Item<G> {
    fn aabb(&self) -> Aabb<f64, 3> {
        let [low, high] = self.thing.bounds();
        let low = low.map(|x| x - self.pad);
        let high = high.map(|x| x + self.pad);
        Aabb::with_bounds(Point3::from(low), Point3::from(high))
    }
}

impl<G: Closest> BHShape<f64, 3> for Item<G> {
    fn set_bh_node_index(&mut self, index: usize) {
        self.node = index;
    }

    fn bh_node_index(&self) -> usize {
        self.node
    }
}

impl<G: Closest> PointDistance<f64, 3> for Item<G> {
    fn distance_squared(&self, point: Point3<f64>) -> f64 {
        self.thing.distance_squared(point.coords.into())
    }
}

/// Points or triangles, to be searched.
#[derive(Debug)]
pub(crate) struct Tree<G> {
    items: Vec<Item<G>>,
    hierarchy: Bvh<f64, 3>,
}

impl<G: Closest> Tree<G> {
    /// Of `things` with finite corners; they keep their numbers.
    pub(crate) fn new(things: Vec<G>) -> Self {
        let largest = things
            .iter()
            .flat_map(|thing| thing.bounds().concat())
            .fold(0.0, |largest: f64, x| largest.max(x.abs()));
        // Where everything lies at the origin, any padding will do.
        let pad = (largest * PAD).max(f64::MIN_POSITIVE.sqrt());
        let item = |(index, thing)| Item {
            thing,
            index: index as u32,
            pad,
            node: 0,
        };
        let mut items: Vec<Item<G>> = things.into_iter().enumerate().map(item).collect();
        let hierarchy = Bvh::build(&mut items);
        Self { items, hierarchy }
    }

    /// Number and distance of the thing nearest to `point`; none of an empty tree.
    pub(crate) fn nearest(&self, point: V3) -> Option<(usize, f64)> {
        let (item, distance) = self
            .hierarchy
            .nearest_to(Point3::from(point), &self.items)?;
        Some((item.index as usize, distance))
    }

    /// The thing of number `index`.
    pub(crate) fn thing(&self, index: usize) -> &G {
        &self.items[index].thing
    }

    /// The things whose boxes a ray passes.
    pub(crate) fn along(&self, origin: V3, direction: V3) -> impl Iterator<Item = &G> {
        let ray = Ray::new(Point3::from(origin), Vector3::from(direction));
        let met = self.hierarchy.traverse(&ray, &self.items);
        met.into_iter().map(|item| &item.thing)
    }

    /// Nodes from the root on, children behind their parents: a thing, or the numbers of two nodes.
    pub(crate) fn nodes(&self) -> impl DoubleEndedIterator<Item = Node<'_, G>> + ExactSizeIterator {
        self.hierarchy.nodes.iter().map(|node| match node {
            BvhNode::Leaf { shape_index, .. } => Node::Leaf(&self.items[*shape_index].thing),
            BvhNode::Node {
                child_l_index,
                child_r_index,
                ..
            } => Node::Pair([*child_l_index, *child_r_index]),
        })
    }
}

/// A node of a [`Tree`].
pub(crate) enum Node<'a, G> {
    Leaf(&'a G),
    Pair([usize; 2]),
}

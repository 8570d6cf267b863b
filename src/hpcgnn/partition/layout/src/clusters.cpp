// Label propagation with clusters of limited size, node by node: the same clusters in every run.
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

struct Graph {
    int64_t num_nodes;
    const int64_t* begin;     // num_nodes + 1
    const int32_t* neighbour;
    const int32_t* visit;     // the nodes in the order in which they choose a cluster
};

struct Clusters {
    std::vector<int32_t> label, size;

    explicit Clusters(int64_t num_nodes) : label(num_nodes), size(num_nodes, 1) {
        std::iota(label.begin(), label.end(), 0);
    }

    // Every node joins the cluster that most of its neighbours are in, if that has room and more of
    // them than its own. Returns the number of nodes that moved.
    int64_t round(const Graph& graph, int32_t limit, std::vector<int32_t>& count) {
        std::vector<int32_t> seen;
        int64_t moved = 0;
        for (int64_t k = 0; k < graph.num_nodes; k++) {
            const int32_t node = graph.visit[k];
            const int32_t own = label[node];
            seen.clear();
            for (int64_t e = graph.begin[node]; e < graph.begin[node + 1]; e++) {
                const int32_t there = label[graph.neighbour[e]];
                if (count[there]++ == 0) seen.push_back(there);
            }
            int32_t best = own;
            for (const int32_t there : seen)
                if (count[there] > count[best] && size[there] < limit) best = there;
            for (const int32_t there : seen) count[there] = 0;
            if (best == own) continue;
            size[own]--;
            size[best]++;
            label[node] = best;
            moved++;
        }
        return moved;
    }
};

}  // namespace

// `order` [num_nodes] receives the nodes by cluster: clusters in the order in which `visit` reaches
// them, nodes of a cluster in the order of `visit`.
extern "C" __attribute__((visibility("default"))) void hpcgnn_order_by_cluster(
    int64_t num_nodes, const int64_t* begin, const int32_t* neighbour, const int32_t* visit,
    int32_t limit, int32_t rounds, int32_t* order) {
    const Graph graph{num_nodes, begin, neighbour, visit};
    Clusters clusters(num_nodes);
    std::vector<int32_t> place(num_nodes, 0);
    for (int32_t k = 0; k < rounds; k++)
        if (clusters.round(graph, limit, place) == 0) break;
    int32_t next = 0;
    std::vector<bool> met(num_nodes, false);
    for (int64_t k = 0; k < num_nodes; k++) {
        const int32_t cluster = clusters.label[visit[k]];
        if (!met[cluster]) {
            met[cluster] = true;
            place[cluster] = next;
            next += clusters.size[cluster];
        }
        order[place[cluster]++] = visit[k];
    }
}

//! Parameter counts of the published settings, as their logs print them. Vocabularies are those of the logs.

use densely_core::{Result, nn, seeded};
use densely_recsys::embedding::Pretrained;
use densely_recsys::layers::Activation;
use densely_recsys::{CtrConfig, DinConfig, Field, FinalMlpConfig};
use tch::nn::VarStore;

fn count(config: &CtrConfig) -> Result<u64> {
    let vs = VarStore::new(tch::Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    nn::check_names(&vs)?;
    drop(model);
    Ok(nn::parameter_count(&vs))
}

fn categorical(sizes: &[i64]) -> Vec<Field> {
    let field =
        |(place, size): (usize, &i64)| Field::categorical(&format!("C{}", place + 1), *size);
    sizes.iter().enumerate().map(field).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn finalmlp_has_as_many_parameters_as_the_published_runs() -> Result<()> {
    let relu = FinalMlpConfig::default();
    assert_eq!(count(&CtrConfig::FinalMlp(relu.clone()))?, 253_392); // Frappe_x1

    let numbers: Vec<Field> = (1..=13).map(|i| Field::numeric(&format!("I{i}"))).collect();
    let criteo = categorical(&[
        1462, 560, 413_424, 248_543, 307, 23, 12_192, 635, 5, 54_712, 5350, 409_749, 3182, 29,
        12_500, 365_811, 12, 4934, 2096, 6, 397_981, 20, 17, 88_608, 98, 64_073,
    ]);
    let criteo_x1 = FinalMlpConfig {
        fields: [numbers.clone(), criteo].concat(),
        mlp1_hidden_units: vec![400; 3],
        mlp2_hidden_units: vec![1000],
        fs_hidden_units: vec![800],
        fs1_context: numbers
            .iter()
            .map(|field| field.name().to_owned())
            .collect(),
        fs2_context: names(&["C6"]),
        num_heads: 200,
        ..relu.clone()
    };
    assert_eq!(count(&CtrConfig::FinalMlp(criteo_x1))?, 22_478_162);

    let avazu = categorical(&[
        9, 9, 3480, 4271, 26, 4864, 305, 33, 228_186, 1_048_285, 6515, 6, 6, 1940, 10, 11, 349, 6,
        61, 171, 52, 26,
    ]);
    let avazu_x1 = FinalMlpConfig {
        fields: avazu,
        mlp1_hidden_units: vec![400; 3],
        mlp2_hidden_units: vec![800],
        fs_hidden_units: vec![800],
        fs1_context: vec![],
        fs2_context: vec![],
        num_heads: 10,
        ..relu.clone()
    };
    assert_eq!(count(&CtrConfig::FinalMlp(avazu_x1.clone()))?, 13_979_472);

    let movielens = FinalMlpConfig {
        fields: categorical(&[16_977, 23_606, 49_659]),
        mlp1_hidden_units: vec![400],
        ..avazu_x1
    };
    assert_eq!(count(&CtrConfig::FinalMlp(movielens))?, 1_040_902);

    let criteo_x4 = FinalMlpConfig {
        fields: categorical(&[
            44, 99, 122, 41, 220, 112, 80, 69, 92, 6, 27, 37, 72, 1446, 554, 157_339, 117_822, 306,
            18, 11_882, 630, 5, 39_530, 5131, 156_656, 3176, 28, 11_043, 148_913, 12, 4560, 2003,
            5, 154_564, 18, 17, 53_031, 82, 40_955,
        ]),
        embedding_dim: 16,
        mlp1_hidden_units: vec![1000; 5],
        mlp1_batch_norm: false,
        mlp2_hidden_units: vec![500],
        mlp2_batch_norm: false,
        use_fs: false,
        fs1_context: vec![],
        fs2_context: vec![],
        num_heads: 50,
        ..relu.clone()
    };
    assert_eq!(count(&CtrConfig::FinalMlp(criteo_x4.clone()))?, 19_524_954);

    let avazu_x4 = FinalMlpConfig {
        fields: categorical(&[
            26, 9, 9, 4051, 5461, 27, 6545, 400, 33, 820_509, 2_903_322, 7259, 7, 6, 2556, 10, 11,
            434, 6, 70, 173, 62, 9, 4,
        ]),
        mlp1_hidden_units: vec![2000; 3],
        mlp1_batch_norm: true,
        num_heads: 20,
        ..criteo_x4
    };
    assert_eq!(count(&CtrConfig::FinalMlp(avazu_x4))?, 69_046_986);
    Ok(())
}

#[test]
fn din_has_as_many_parameters_as_the_published_runs() -> Result<()> {
    let amazon = DinConfig::default();
    assert_eq!(count(&CtrConfig::Din(amazon.clone()))?, 5_403_522);

    let plain = [
        ("userid", 403_958),
        ("cms_segid", 99),
        ("cms_group_id", 15),
        ("final_gender_code", 4),
        ("age_level", 9),
        ("pvalue_level", 6),
        ("shopping_level", 5),
        ("occupation", 4),
        ("new_user_class_level", 7),
        ("adgroup_id", 246_851),
        ("cate_id", 11_330),
        ("campaign_id", 191_771),
        ("customer", 132_136),
        ("brand", 308_870),
        ("pid", 4),
        ("btag", 6),
    ];
    let mut fields: Vec<Field> = plain
        .iter()
        .map(|(name, size)| Field::categorical(name, *size))
        .collect();
    fields.push(Field::numeric("price"));
    for (name, size, owner) in [
        ("cate_his", 11_330, "cate_id"),
        ("brand_his", 308_870, "brand"),
        ("btag_his", 6, "btag"),
    ] {
        fields.push(Field::sequence(name, size, 50, Some(owner)));
    }
    let taobao = DinConfig {
        fields,
        din_target_field: vec![names(&["cate_id", "brand", "btag"])],
        din_sequence_field: vec![names(&["cate_his", "brand_his", "btag_his"])],
        embedding_dim: 32,
        attention_hidden_activations: Activation::Relu,
        din_use_softmax: false,
        dnn_hidden_units: vec![512, 256, 128],
        dnn_activations: Activation::Relu,
        batch_norm: false,
        ..amazon.clone()
    };
    assert_eq!(count(&CtrConfig::Din(taobao))?, 42_263_682);

    // Given vectors are no parameters: their tables are small here, so that the test is.
    let given = |names: &[&str]| -> Vec<Pretrained> {
        names
            .iter()
            .map(|name| Pretrained {
                field: (*name).to_owned(),
                dim: 64,
            })
            .collect()
    };
    let kuaivideo = DinConfig {
        fields: vec![
            Field::categorical("user_id", 10_002),
            Field::categorical("item_id", 632_406),
            Field::categorical("item_emb", 10),
            Field::sequence("pos_items", 632_406, 100, Some("item_id")),
            Field::sequence("neg_items", 632_406, 100, Some("item_id")),
            Field::sequence("pos_items_emb", 10, 100, Some("item_emb")),
            Field::sequence("neg_items_emb", 10, 100, Some("item_emb")),
        ],
        din_target_field: vec![names(&["item_id", "item_emb"]); 2],
        din_sequence_field: vec![
            names(&["pos_items", "pos_items_emb"]),
            names(&["neg_items", "neg_items_emb"]),
        ],
        pretrained: given(&["item_emb", "pos_items_emb", "neg_items_emb"]),
        attention_hidden_activations: Activation::Relu,
        din_use_softmax: false,
        batch_norm: false,
        ..amazon.clone()
    };
    assert_eq!(count(&CtrConfig::Din(kuaivideo))?, 43_032_835);

    let microvideo = DinConfig {
        fields: vec![
            Field::categorical("user_id", 10_988),
            Field::categorical("item_id", 10),
            Field::categorical("cate_id", 514),
            Field::sequence("clicked_items", 10, 100, None),
            Field::sequence("clicked_categories", 514, 100, Some("cate_id")),
        ],
        din_target_field: vec![names(&["item_id", "cate_id"])],
        din_sequence_field: vec![names(&["clicked_items", "clicked_categories"])],
        pretrained: given(&["item_id", "clicked_items"]),
        attention_hidden_activations: Activation::Relu,
        dnn_activations: Activation::Relu,
        ..amazon
    };
    assert_eq!(count(&CtrConfig::Din(microvideo))?, 2_127_234);
    Ok(())
}

#[test]
fn the_authors_din_has_as_many_parameters_as_its_code() -> Result<()> {
    let authors = DinConfig::authors();
    assert_eq!(count(&CtrConfig::Din(authors.clone()))?, 4_242_267);
    let dice = DinConfig {
        dnn_activations: Activation::Dice,
        ..authors
    };
    assert_eq!(count(&CtrConfig::Din(dice))?, 4_242_267 + 240);
    Ok(())
}
